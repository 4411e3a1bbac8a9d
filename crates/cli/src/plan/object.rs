//! A plan as one JSON object.

use aerogel_train::{PipelinePlan, RankPlan, RunPlan, StagePlan};
use serde_json::{Value, json};

/// The object. `planned_bytes` is of all ranks, if all were planned; `memory`, `flops_per_step`,
/// `seconds`, `peak`, `sections` and `communication` are of the rank that is shown.
pub fn object(plan: &RunPlan, shown: &RankPlan<'_>) -> Value {
    let report = shown.report;
    let sections: Vec<Value> = report
        .sections
        .iter()
        .map(|s| {
            json!({
                "name": s.name, "calls": s.calls, "kernels": s.kernels, "flops": s.flops,
                "seconds": s.seconds, "transient_bytes": s.transient_bytes,
                "largest_live_bytes": s.largest_live_bytes,
            })
        })
        .collect();
    let mesh: Vec<Value> = shown
        .axes
        .iter()
        .map(
            |a| json!({ "axis": a.name, "ranks": a.ranks, "position": a.position, "cuts": a.cuts }),
        )
        .collect();
    let communication: Vec<Value> = shown
        .communication
        .iter()
        .map(|t| {
            json!({
                "kind": t.kind, "over": t.over, "calls": t.calls, "wire_bytes": t.wire_bytes,
            })
        })
        .collect();
    json!({
        "parameters": plan.counts.parameters,
        "parameters_without_embeddings": plan.counts.parameters_without_embeddings,
        "vocabulary": plan.model.vocab,
        "tokens_per_step": plan.tokens_per_step,
        "micro_batches": plan.micro_batches,
        "flops_per_step": report.flops_per_step,
        "memory": memory(report),
        "planned_bytes": shown.is_whole().then(|| plan.total_bytes()),
        "budget_bytes": plan.budget_bytes,
        "fits": plan.largest_bytes() <= plan.budget_bytes,
        "seconds": report.seconds,
        "planning_seconds": report.planning_seconds,
        "peak": {
            "section": report.peak_section, "step": report.peak_step,
            "index": report.peak_index, "values": report.peak_values,
        },
        "sections": sections,
        "device": plan.backend.name(),
        "machine": plan.machine,
        "threads": plan.threads,
        "plan_hash": plan.hash(),
        "mesh": mesh,
        "ranks": shown.mesh.ranks(),
        "rank": shown.rank,
        "zero_stage": shown.zero.stage,
        "stages": shown.stages.iter().map(stage).collect::<Vec<_>>(),
        "communication": communication,
        "pipeline": shown.pipeline.as_ref().map(pipeline),
    })
}

fn memory(report: &aerogel_plan::Report) -> Value {
    let mut memory = serde_json::to_value(report.kinds).unwrap_or_default();
    memory["total_bytes"] = report.total_bytes.into();
    memory
}

fn stage(stage: &StagePlan<'_>) -> Value {
    let layers: Vec<[usize; 2]> = stage.layers.iter().map(|r| [r.start, r.end]).collect();
    json!({
        "stage": stage.stage, "layers": layers, "parameters": stage.parameters,
        "memory": memory(stage.report), "flops_per_step": stage.report.flops_per_step,
        "seconds": stage.report.seconds, "slots": stage.slots,
    })
}

fn pipeline(pipeline: &PipelinePlan) -> Value {
    json!({
        "schedule": pipeline.schedule, "bubble": pipeline.timeline.bubble,
        "seconds": pipeline.timeline.total_seconds, "slots": pipeline.slots,
        "stages": pipeline.slots.len(),
    })
}
