//! Ten AdamW steps on the CPU give PyTorch's losses.

use aerogel_train::Backend;
use aerogel_train::selftest::{SelfTest, parity::CASES, selftest};
use std::collections::BTreeSet;

#[test]
fn ten_steps_give_the_losses_of_pytorch() {
    let (backend, only) = (Backend::Cpu, Some("parity".to_owned()));
    let mut names = BTreeSet::new();
    let ask = SelfTest { backend, seed: 0, cases: None, only };
    selftest(&ask, &mut |done| {
        let worst = done.result.unwrap_or_else(|e| panic!("{}: {e}", done.name));
        println!("{}: {worst:.1e} of the bound", done.name);
        // Rounding shows, so something was compared.
        assert!(worst > 0.0, "{}", done.name);
        names.insert(done.name);
    })
    .unwrap();
    assert_eq!(names.len(), CASES);
}
