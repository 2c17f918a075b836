//! Whose turn it is to have a stream of a shared HTTP/2 connection: first come, first served. Whoever waits keeps its place
//! until it has a stream, also while it makes another connection and finds that somebody else has made the last one that
//! a limit allows.

use std::cell::Cell;
use std::rc::Rc;

use meshwork_base::{Clock, Tick};
use meshwork_decision::Cause;

use super::behind::{Ahead, Behind};
use super::h2::H2Connection;
use super::line::InLine;
use super::pool::EndpointPool;
use crate::error::Failure;

/// Who makes connections.
pub(super) trait Dials {
    /// A place among the connections that limits count.
    type Permit;

    /// A place for another one, where that is within the limits at this moment.
    fn admit(&self) -> Option<Self::Permit>;

    /// Makes one; without a place it looks for one first.
    ///
    /// # Errors
    /// A limit, or it could not be made.
    async fn dial(&self, permit: Option<Self::Permit>) -> Result<Rc<H2Connection>, Failure>;

    /// A limit has made somebody wait.
    fn count_waiting(&self);

    fn now(&self) -> Tick;
}

/// What one has that has waited.
enum Found<P> {
    /// Room on a connection that is there.
    Room(Rc<H2Connection>),
    /// Leave to make one, with the place for it where it has one already: whoever asked for it again could be refused, and have
    /// hidden it from others meanwhile.
    Leave(Option<P>),
}

/// A connection that takes another stream: one that has room, or a new one. Where a limit allows no other, a stream waits until
/// one ends, or a connection does that takes no more; as long as its caller waits. Nothing of it is sent before: what waits
/// inside of `h2` cannot be taken back.
///
/// # Errors
/// None could be made.
pub(super) async fn connection(
    pool: &EndpointPool,
    clock: &dyn Clock,
    behind: Behind<'_>,
    dials: &impl Dials,
) -> Result<Rc<H2Connection>, Failure> {
    let line = pool.streams();
    // Whoever comes while others wait goes to the end of their line.
    let mut is_behind = !line.is_empty();
    let mut place = None;
    let permit = Cell::new(None);
    loop {
        if !is_behind {
            let sharing = pool.share(clock.wall(), behind, || dials.dial(permit.take()));
            let shared = away(place.as_ref(), sharing).await;
            match shared {
                Err(failure) if failure.cause == Cause::MaxConnections => {
                    // What has ended keeps its place among the limit's until it is let go. What is open gives it back, too, at
                    // the latest when all that runs on it has ended.
                    if pool.let_go_of_ended() || pool.open() == 0 {
                        continue;
                    }
                }
                done => return done,
            }
        }
        behind.waits(Ahead::Limit);
        // One that waits is one that the limit made wait, however often it is beaten to what it was called for.
        if place.is_none() {
            dials.count_waiting();
        }
        let may_look = !is_behind && (place.is_some() || line.is_empty());
        let found = room(pool, place.get_or_insert_with(|| line.join()), may_look, clock, dials).await;
        // Leaving calls the next one, for what was found or for another connection.
        behind.in_time()?;
        behind.goes(dials.now());
        match found {
            Found::Room(connection) => return Ok(connection),
            Found::Leave(with) => permit.set(with),
        }
        is_behind = false;
    }
}

/// Whoever makes a connection is called for nothing meanwhile: what ends then is the next one's.
async fn away<T>(place: Option<&InLine<'_>>, step: impl Future<Output = T>) -> T {
    let Some(place) = place else { return step.await };
    place.leaves();
    let done = step.await;
    place.is_back();
    done
}

/// Waits for room on a connection that is there, or until one may be made, as where none is open any more. `may_look`: it is
/// nobody else's turn; what ended before it came has called nobody.
async fn room<D: Dials>(
    pool: &EndpointPool,
    place: &InLine<'_>,
    mut may_look: bool,
    clock: &dyn Clock,
    dials: &D,
) -> Found<D::Permit> {
    let mut is_called = false;
    loop {
        if may_look {
            if let Some(connection) = pool.with_room(clock.wall()) {
                return Found::Room(connection);
            }
            // What has ended keeps its place among the limit's until it is let go.
            pool.let_go_of_ended();
            if pool.open() == 0 {
                return Found::Leave(None);
            }
            if is_called {
                // Where one is being made it is that what is waited for; a place that is taken now would only lie there.
                if pool.is_dialing() {
                    return Found::Leave(None);
                }
                if let Some(permit) = dials.admit() {
                    return Found::Leave(Some(permit));
                }
                if let Some(reluctant) = pool.reluctant_with_room() {
                    return Found::Room(reluctant);
                }
            }
        }
        place.called().await;
        (may_look, is_called) = (true, true);
    }
}

#[cfg(test)]
mod tests;
