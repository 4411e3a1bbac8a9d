//! One rank's end.

use crate::board::{Posted, Want};
use crate::check::{check, wrong_size};
use crate::hub::{Hub, Seat};
use crate::merge::{Job, Scratch, Strip, merge};
use crate::peers::{Bound, Peers, Spot};
use crate::spread::Share;
use crate::state::{State, Wait};
use crate::traffic::ring_bytes;
use aerogel_graph::Mesh;
use aerogel_machine::{Call, Collectives, CommError, Merge, Pattern, Traffic};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Up to here every member of an all_reduce merges all elements for itself, which takes less time
/// than to wait for the pieces of others. The bits are the same.
const SMALL_ELEMENTS: usize = 256;

/// What one exchange needs, made once.
struct Own {
    spots: Vec<Spot>,
    scratch: Scratch,
}

/// One rank's end of a [`Fabric`](crate::Fabric).
///
/// Exchanges of one tie come one after another; messages may pass meanwhile on other threads.
/// Dropping it tells the others that the rank has ended, by itself or by a panic.
pub struct Tie {
    hub: Arc<Hub>,
    rank: usize,
    own: Mutex<Own>,
}

impl Tie {
    pub(crate) fn new(hub: Arc<Hub>, rank: usize) -> Tie {
        let ranks = hub.mesh.ranks();
        let own = Own { spots: Vec::with_capacity(ranks), scratch: Scratch::new(ranks) };
        Tie { hub, rank, own: Mutex::new(own) }
    }

    /// Takes the rank's seat, after all that can be found without the others.
    fn enter(&self, call: &Call, input: usize, output: usize) -> Result<(usize, Seat), CommError> {
        self.alive(|| format!("{} at {}", call.pattern.name(), call.site))?;
        let hub = &*self.hub;
        let Some(over) = hub.overs.iter().position(|o| *o == call.over) else {
            let what = "a group along axes that the mesh does not have, or has once";
            return Err(hub.fail(self.rank, wrong_size(call, what, 0, input)));
        };
        let seat = hub.seats[over][self.rank];
        let members = hub.groups[seat.board].len();
        check(call, members, input, output).map_err(|error| hub.fail(self.rank, error))?;
        hub.signs[self.rank].set(Instant::now(), "in", call.pattern.name(), &call.site);
        Ok((over, seat))
    }

    /// Fails if something has broken, or this rank has left.
    fn alive(&self, call: impl FnOnce() -> String) -> Result<(), CommError> {
        let mut state = self.hub.lock();
        state.hear(self.rank)?;
        let Some(reason) = state.ranks[self.rank].gone.clone() else { return Ok(()) };
        drop(state);
        Err(self.gone(self.rank, reason, call()))
    }

    fn gone(&self, rank: usize, reason: String, call: String) -> CommError {
        let error = CommError::Gone { rank, reason, waiting: self.rank, call };
        self.hub.fail(self.rank, error)
    }

    /// Whether there is such a rank to exchange messages with.
    fn other(&self, rank: usize, call: impl Fn() -> String) -> Result<(), CommError> {
        self.alive(&call)?;
        let ranks = self.hub.mesh.ranks();
        if rank < ranks {
            return Ok(());
        }
        Err(self.gone(rank, format!("there are {ranks} ranks, counted from 0"), call()))
    }

    /// Makes this member's output out of what all have brought.
    fn share(&self, call: &Call, seat: Seat, peers: Peers<'_>, share: Share, own: &mut Scratch) {
        let width = call.dtype.bytes();
        let member = seat.member;
        let input = |m: usize| peers.input(m);
        let job = |by| Job { by, dtype: call.dtype, members: share.members };
        let whole = peers.output_range();
        match call.pattern {
            _ if share.bytes == 0 => {}
            Pattern::AllReduce(by) if call.elements > SMALL_ELEMENTS => {
                let piece = share.piece(member, width);
                let strip = Strip { start: piece.start, bytes: piece.len(), stride: 0, count: 1 };
                // SAFETY: this piece of its own output is this member's alone until `cross` ends.
                let out = unsafe { peers.output_mut(member, piece) };
                merge(job(by), &input, strip, out, own);
                drop(self.hub.cross(self.rank, seat, |_| {}));
                for other in (0..share.members).filter(|&m| m != member) {
                    let piece = share.piece(other, width);
                    // SAFETY: the other member finished its piece before `cross`, whose lock makes
                    // it visible, and writes its other pieces alone.
                    let from = unsafe { peers.output(other, piece.clone()) };
                    // SAFETY: of this output the others read the member's own piece alone.
                    unsafe { peers.output_mut(member, piece) }.copy_from_slice(from);
                }
            }
            Pattern::AllReduce(by) => {
                let strip = Strip { start: 0, bytes: share.bytes, stride: 0, count: 1 };
                // SAFETY: here nobody reads the outputs of others.
                merge(job(by), &input, strip, unsafe { peers.output_mut(member, whole) }, own);
            }
            Pattern::ReduceScatter => {
                // SAFETY: here nobody reads the outputs of others.
                let out = unsafe { peers.output_mut(member, whole) };
                merge(job(Merge::Sum), &input, share.strip(), out, own);
            }
            pattern => {
                // SAFETY: here nobody reads the outputs of others.
                let out = unsafe { peers.output_mut(member, whole) };
                share.copy(pattern, &input, out);
            }
        }
    }
}

impl Collectives for Tie {
    fn mesh(&self) -> &Mesh {
        &self.hub.mesh
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn exchange(&self, call: &Call, input: &[u8], output: &mut [u8]) -> Result<(), CommError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let Own { spots, scratch } = &mut *own;
        let (over, seat) = self.enter(call, input.len(), output.len())?;
        let (hub, name) = (&*self.hub, call.pattern.name());
        let (in_bytes, out_bytes) = (input.len(), output.len());
        // From here on the output is touched through this pointer alone.
        let spot = Spot { input: input.as_ptr(), output: output.as_mut_ptr() };
        let bound = Bound::new();
        hub.meet(self.rank, seat, Posted { want: Want::of(call), spot }, spots)?;
        // SAFETY: all members agreed on the call, so all buffers have these sizes (`check`). Each
        // member borrows its input and, exclusively, its output until the last `cross`, which ends
        // when all have come to it, and has no view left when it comes to it.
        let peers = unsafe { Peers::new(spots, in_bytes, out_bytes) };
        let members = hub.groups[seat.board].len();
        let share = Share { member: seat.member, members, bytes: in_bytes, rows: call.rows };
        self.share(call, seat, peers, share, scratch);
        let mut state = hub.cross(self.rank, seat, |board| board.clear());
        let sent_bytes = ring_bytes(call.pattern, in_bytes, seat.member, members);
        state.ranks[self.rank].counts.add(over, name, sent_bytes);
        drop(state);
        drop(bound);
        hub.signs[self.rank].set(Instant::now(), "after", name, &call.site);
        Ok(())
    }

    fn send(&self, to: usize, tag: u64, site: &str, bytes: &[u8]) -> Result<(), CommError> {
        let call = || format!("send of {} bytes to rank {to} (tag {tag}) at {site}", bytes.len());
        self.other(to, call)?;
        let (hub, rank, now) = (&*self.hub, self.rank, Instant::now());
        let mut letter = hub.lock().ranks[rank].mail.take_spare(bytes.len());
        (letter.from, letter.tag) = (rank, tag);
        letter.bytes.copy_from_slice(bytes);
        letter.site.clear();
        letter.site.push_str(site);
        let mut state = hub.lock();
        state.hear(rank)?;
        if let Some(reason) = state.ranks[to].gone.clone() {
            drop(state);
            return Err(self.gone(to, reason, call()));
        }
        state.ranks[to].mail.deliver(letter);
        state.ranks[to].waits.retain(|w| match *w {
            Wait::Message { from, tag: waited, .. } => (from, waited) != (rank, tag),
            Wait::Board(_) => true,
        });
        state.ranks[rank].counts.add(0, "send", if to == rank { 0 } else { bytes.len() as u64 });
        drop(state);
        hub.signs[to].touch(now);
        hub.signs[rank].set(now, "after", "send", site);
        hub.ring([to]);
        Ok(())
    }

    fn receive(
        &self,
        from: usize,
        tag: u64,
        site: &str,
        bytes: &mut [u8],
    ) -> Result<(), CommError> {
        let wanted = bytes.len();
        let call = || format!("receive of {wanted} bytes from rank {from} (tag {tag}) at {site}");
        self.other(from, call)?;
        let (hub, rank) = (&*self.hub, self.rank);
        hub.signs[rank].set(Instant::now(), "in", "receive", site);
        let wait = Wait::Message { from, tag, bytes: wanted };
        let mut state = hub.lock();
        state.ranks[rank].entered += 1;
        let taken = |state: &mut State| state.ranks[rank].mail.take(from, tag);
        let (state, letter) = hub.block(state, rank, wait, taken)?;
        drop(state);
        if letter.bytes.len() != wanted {
            let (sent, at) = (letter.bytes.len(), &letter.site);
            let got = format!("send of {sent} bytes to rank {rank} (tag {tag}) at {at}");
            let error = CommError::Mismatch { rank: from, got, other: rank, wanted: call() };
            return Err(hub.fail(rank, error));
        }
        bytes.copy_from_slice(&letter.bytes);
        hub.lock().ranks[from].mail.give_back(letter);
        hub.signs[rank].set(Instant::now(), "after", "receive", site);
        Ok(())
    }

    fn leave(&self, reason: &str) {
        self.hub.leave(self.rank, reason);
    }

    fn progress(&self, site: &Arc<str>) {
        self.hub.signs[self.rank].set(Instant::now(), "at", "", site);
    }

    fn traffic(&self) -> Vec<Traffic> {
        self.hub.lock().ranks[self.rank].counts.list(&self.hub.overs)
    }

    /// Bytes of this rank's messages: of all that were on their way at once, by size, since their
    /// buffers are kept for the next ones.
    fn held_bytes(&self) -> u64 {
        self.hub.lock().ranks[self.rank].mail.held_bytes()
    }
}

impl Drop for Tie {
    fn drop(&mut self) {
        let panics = std::thread::panicking();
        self.hub.leave(self.rank, if panics { "it panicked" } else { "it finished" });
    }
}
