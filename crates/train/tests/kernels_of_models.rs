use aerogel_cuda::{Architecture, Chip, compile, sources};
use aerogel_recipe::Recipe;
use aerogel_train::RunPlan;
use std::path::Path;
#[test]
#[ignore]
fn dump() {
    let mut args = std::env::var("RECIPE").unwrap();
    let over: Vec<String> =
        std::env::var("OVER").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let text = std::fs::read_to_string(&args).unwrap();
    let recipe = Recipe::parse(&text, "x.toml", Path::new("."), &over, false).unwrap();
    args.clear();
    let vocab = std::env::var("VOCAB").unwrap_or("256".into()).parse().unwrap();
    let plan = RunPlan::new(&recipe, vocab).unwrap();
    let list = sources(plan.program(0), Chip { architecture: Architecture::SM90A }).unwrap();
    println!("{} sources", list.len());
    let next = std::sync::atomic::AtomicUsize::new(0);
    let skip: usize = std::env::var("ONLY").map_or(usize::MAX, |n| n.parse().unwrap());
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while let Some(x) =
                    list.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    if next.load(std::sync::atomic::Ordering::Relaxed) > skip {
                        break;
                    }
                    let t = std::time::Instant::now();
                    match compile(x, Architecture::SM90A) {
                        Ok(c) => {
                            if let Ok(d) = std::env::var("DUMP") {
                                let i = list.iter().position(|y| y == x).unwrap();
                                std::fs::write(format!("{d}/{i}.cubin"), &c.cubin).unwrap();
                                std::fs::write(
                                    format!("{d}/{i}.txt"),
                                    format!(
                                        "{} {}\n{}\n{}",
                                        x.file,
                                        x.defines.join(" "),
                                        x.generated,
                                        &x.text[..]
                                    ),
                                )
                                .unwrap();
                            }
                            let u: Vec<String> = c
                                .usage
                                .iter()
                                .map(|u| {
                                    format!(
                                        "{}:{}r{}",
                                        u.entry,
                                        u.registers,
                                        if u.spill_bytes > 0 {
                                            format!(" SPILL {}", u.spill_bytes)
                                        } else {
                                            String::new()
                                        }
                                    )
                                })
                                .collect();
                            println!(
                                "{:.2}s {} {:?} {}",
                                t.elapsed().as_secs_f64(),
                                x.file,
                                x.defines.join(" "),
                                u.join(" ")
                            )
                        }
                        Err(e) => println!("ERROR {e}"),
                    }
                }
            });
        }
    });
}
