//! What a rank exchanges with others in one step: a table with bars.

use super::text::{bytes, count, escape};
use crate::plan_rank::{RankPlan, Traffic};
use std::fmt::Write;

/// The table; nothing where a rank is alone.
pub(super) fn html(rank: &RankPlan<'_>) -> String {
    let list = &rank.communication;
    if list.is_empty() {
        return String::new();
    }
    let most = list.iter().map(|t| t.wire_bytes).max().unwrap_or(0);
    let mut out = String::from(
        "<div class=\"scroll\"><table>\n<thead><tr><th>exchange</th><th>mesh axes</th>\
         <th class=\"n\">calls</th><th class=\"n\">bytes a call</th>\
         <th class=\"n\">bytes a step</th><th></th></tr></thead>\n<tbody>\n",
    );
    for traffic in list {
        out += &row(traffic, most);
    }
    let sent: u64 = list.iter().filter(|t| t.kind != "receive").map(|t| t.wire_bytes).sum();
    let _ = writeln!(
        out,
        "</tbody>\n<tfoot><tr><td>sent in a step</td><td></td><td></td><td></td>\
         <td class=\"n\">{}</td><td></td></tr></tfoot>\n</table></div>",
        bytes(sent)
    );
    let _ = writeln!(
        out,
        "<p class=\"caption\">What rank {} sends to others in one training step, by exchange and \
         by the mesh axes along which the ranks that take part differ. Of collectives it receives \
         as much as it sends, counted as in a ring; what it receives from other stages of a \
         pipeline has a row of its own. Bytes a call are a mean.</p>",
        rank.rank
    );
    out
}

fn row(traffic: &Traffic, most: u64) -> String {
    let width = 100.0 * traffic.wire_bytes as f64 / most.max(1) as f64;
    // A class has one colour wherever it is shown.
    let class = traffic.kind.replace('_', "-");
    format!(
        "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td class=\"bars\"><i class=\"bar {class}\" \
         style=\"width:{width:.1}%\"></i></td></tr>\n",
        escape(&traffic.kind.replace('_', "-")),
        escape(&traffic.over.join(" × ")),
        count(traffic.calls),
        bytes(traffic.wire_bytes / traffic.calls.max(1)),
        bytes(traffic.wire_bytes),
    )
}
