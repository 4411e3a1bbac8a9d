//! Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011). A draw is a pure function of (seed, step, stream, global element), so it has
//! no state, and it does not depend on threads, ranks or buffers.

const MUL: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words of one counter under one key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MUL[0]) * u64::from(counter[0]);
        let b = u64::from(MUL[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The 64-bit id of a stream: FNV-1a of its name, so that it follows the scope and not an order.
pub fn stream_id(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The four words that hold elements `4 * (element / 4)` onwards.
pub fn block(seed: u64, step: u64, stream: u64, element: u64) -> [u32; 4] {
    let quad = element / 4;
    let folded = (stream ^ (stream >> 32)) as u32;
    philox(
        [quad as u32, (quad >> 32) as u32, step as u32, folded],
        [seed as u32, (seed >> 32) as u32],
    )
}

/// A uniform number in [0, 1) with 24 bits.
pub fn uniform(seed: u64, step: u64, stream: u64, element: u64) -> f32 {
    let word = block(seed, step, stream, element)[(element % 4) as usize];
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// The step that draws initial values; no training step reaches it.
pub const INIT_STEP: u64 = u32::MAX as u64;

/// A standard normal number for initial value `element` of the tensor `stream` (Box-Muller, f64).
pub fn normal(seed: u64, stream: u64, element: u64) -> f64 {
    let (radius, angle) = polar(seed, stream, element / 2);
    radius * if element.is_multiple_of(2) { angle.cos() } else { angle.sin() }
}

/// The numbers of initial values from `first` on, times `deviation`: those of [`normal`], two at
/// the price of little more than one.
pub fn normals(seed: u64, stream: u64, first: u64, deviation: f64, out: &mut [f32]) {
    let mut last = (u64::MAX, 0.0, 0.0);
    for (element, x) in (first..).zip(out) {
        if last.0 != element / 2 {
            let (radius, angle) = polar(seed, stream, element / 2);
            last = (element / 2, radius, angle);
        }
        let (_, radius, angle) = last;
        let wave = if element.is_multiple_of(2) { angle.cos() } else { angle.sin() };
        *x = (deviation * (radius * wave)) as f32;
    }
}

/// The polar coordinates of a pair of elements.
fn polar(seed: u64, stream: u64, pair: u64) -> (f64, f64) {
    let w = block(seed, INIT_STEP, stream, pair * 4);
    let radius = (-2.0 * ((f64::from(w[0]) + 0.5) / 4_294_967_296.0).ln()).sqrt();
    (radius, std::f64::consts::TAU * f64::from(w[1]) / 4_294_967_296.0)
}

/// What draws and global coordinates depend on, apart from the element: one a section run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// The run's seed.
    pub seed: u64,
    /// Attempted steps so far.
    pub step: u64,
    /// Which piece in time of the cut axes is at work.
    pub micro: u64,
    /// Where in the mesh of ranks.
    pub place: crate::types::Place,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_paper() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn many_numbers_are_those_of_one_at_a_time() {
        for first in [0, 7] {
            let mut out = [0.0; 9];
            normals(3, 5, first, 0.02, &mut out);
            let wanted: Vec<f32> =
                (first..first + 9).map(|i| (0.02 * normal(3, 5, i)) as f32).collect();
            assert_eq!(out.to_vec(), wanted);
        }
    }

    #[test]
    fn moments() {
        let n = 20_000u64;
        let u: f64 = (0..n).map(|i| f64::from(uniform(7, 3, 9, i))).sum::<f64>() / n as f64;
        assert!((u - 0.5).abs() < 0.01, "{u}");
        let z: Vec<f64> = (0..n).map(|i| normal(7, 9, i)).collect();
        let mean = z.iter().sum::<f64>() / n as f64;
        let var = z.iter().map(|x| x * x).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
    }
}
