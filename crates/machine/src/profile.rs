//! Machine profiles: what predicted times are made from.

/// What a machine reaches, roughly; `bench` will measure it.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// For people.
    pub name: String,
    /// Worker threads.
    pub threads: usize,
    /// Memory that a run may take.
    pub memory_bytes: u64,
    /// Sustained f32 product rate of all threads, FLOP/s.
    pub flops_per_second: f64,
    /// Sustained copy rate, bytes/s.
    pub bytes_per_second: f64,
    /// Cost of starting one kernel.
    pub launch_nanoseconds: f64,
}

impl Machine {
    /// A CPU of so many threads, with cautious figures of a server core.
    pub fn cpu(threads: usize, memory_bytes: u64) -> Machine {
        Machine {
            name: format!("cpu, {threads} threads"),
            threads,
            memory_bytes,
            flops_per_second: 100e9 * threads as f64,
            bytes_per_second: 12e9 * (threads as f64).min(4.0),
            launch_nanoseconds: 3000.0,
        }
    }

    /// The roofline time of some work.
    pub fn nanoseconds(&self, cost: aerogel_graph::Cost) -> f64 {
        let compute = cost.flops as f64 / self.flops_per_second;
        let traffic = cost.bytes as f64 / self.bytes_per_second;
        self.launch_nanoseconds + 1e9 * compute.max(traffic)
    }
}
