//! A step in time, in the format of Chrome's trace viewer, which Perfetto reads as well.

use aerogel_train::RegionSpan;
use serde_json::{Value, json};

/// The tracks: sections above, their regions below.
const SECTIONS: u32 = 0;
const REGIONS: u32 = 1;

/// An object with one event for each section and each region; times are microseconds.
pub fn chrome(spans: &[RegionSpan]) -> Value {
    let origin = spans.first().map_or(0, |s| s.start_nanoseconds);
    let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let event = |name: &str, track: u32, from: u64, to: u64, args: Value| {
        json!({
            "name": name, "ph": "X", "pid": 0, "tid": track, "args": args,
            "ts": microseconds(from - origin), "dur": microseconds(to - from),
        })
    };
    let track = |name: &str, track: u32| {
        let args = json!({"name": name});
        json!({"name": "thread_name", "ph": "M", "pid": 0, "tid": track, "args": args})
    };
    let end = |s: &RegionSpan| s.start_nanoseconds + s.nanoseconds;
    let mut events = vec![track("sections", SECTIONS), track("regions", REGIONS)];
    for section in spans.chunk_by(|a, b| a.section == b.section && end(a) == b.start_nanoseconds) {
        let (first, last) = (&section[0], &section[section.len() - 1]);
        events.push(event(
            &first.section,
            SECTIONS,
            first.start_nanoseconds,
            end(last),
            json!({"regions": section.len()}),
        ));
    }
    for s in spans {
        let (account, seconds) = (&s.account, 1e-9 * s.nanoseconds as f64);
        let args = json!({
            "scope": &*account.scope, "phase": account.phase.name(), "kind": account.kind.name(),
            "flops": account.cost.flops, "bytes": account.cost.bytes,
            "flops_per_second": account.cost.flops as f64 / seconds,
            "bytes_per_second": account.cost.bytes as f64 / seconds,
        });
        let name = format!("{} {}", account.kernel, account.scope);
        events.push(event(&name, REGIONS, s.start_nanoseconds, end(s), args));
    }
    json!({"traceEvents": events, "displayTimeUnit": "ms"})
}
