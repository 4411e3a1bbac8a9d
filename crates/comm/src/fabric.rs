//! Making the ties of all ranks of a mesh.

use crate::hub::Hub;
use crate::tie::Tie;
use aerogel_graph::Mesh;
use std::sync::Arc;
use std::time::Duration;

/// How ranks are tied.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a rank may keep others waiting without a sign of life. Calls are signs of life, and
    /// so is [`progress`](aerogel_machine::Collectives::progress); time spent in a call is none.
    /// Errors are found within twice this time, most of them at once.
    pub timeout: Duration,
}

impl Default for Options {
    /// Thirty seconds.
    fn default() -> Options {
        Options { timeout: Duration::from_secs(30) }
    }
}

/// What lies between ranks that are threads of one process.
#[derive(Debug)]
pub struct Fabric;

impl Fabric {
    /// One tie for each rank of a mesh, in the order of ranks. Each goes to the thread that is this
    /// rank; dropping it says that the rank has ended.
    ///
    /// # Panics
    /// If the mesh has more than [`MESH_AXES`](aerogel_graph::types::MESH_AXES) axes.
    #[expect(clippy::new_ret_no_self, reason = "a fabric is held by its ends")]
    pub fn new(mesh: Mesh, options: Options) -> Vec<Tie> {
        let ranks = mesh.ranks();
        let hub = Arc::new(Hub::new(mesh, options.timeout));
        (0..ranks).map(|rank| Tie::new(hub.clone(), rank)).collect()
    }
}
