//! Lists, made once: layers that have a pattern in common share them, and both directions share
//! what they are made of.

use super::lists::{Lists, Of};
use super::seen::{Cut, Kept};
use aerogel_graph::Pattern;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// What everything is a function of: the pattern, how many kinds of heads it has, and the cut.
type Key = (Pattern, usize, Cut);

static KEPT: LazyLock<Shared<Key, Kept>> = LazyLock::new(Shared::default);
static LISTS: LazyLock<Shared<(Key, Of), Option<Lists>>> = LazyLock::new(Shared::default);

/// So many are held; a program has a handful.
const MOST: usize = 64;

struct Shared<K, V>(Mutex<HashMap<K, Arc<V>>>);

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Shared(Mutex::default())
    }
}

impl<K: Hash + Eq, V> Shared<K, V> {
    fn get(&self, key: K, make: impl FnOnce(&K) -> V) -> Arc<V> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&key) {
            return known.clone();
        }
        if all.len() >= MOST {
            all.clear();
        }
        let made = Arc::new(make(&key));
        all.insert(key, made.clone());
        made
    }
}

/// What the pattern keeps.
pub(super) fn kept(pattern: &Pattern, kinds: usize, cut: Cut) -> Arc<Kept> {
    KEPT.get((pattern.clone(), kinds, cut), |(pattern, kinds, cut)| Kept::new(pattern, *kinds, cut))
}

/// Lists of it.
pub(super) fn lists(pattern: &Pattern, kinds: usize, cut: Cut, of: Of) -> Arc<Option<Lists>> {
    let kept = kept(pattern, kinds, cut);
    LISTS.get(((pattern.clone(), kinds, cut), of), |_| Lists::new(&kept, of))
}
