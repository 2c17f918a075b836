//! Whose turn it is to have a connection over HTTP/1.1: limits, and those who wait before them.

use std::future::pending;
use std::rc::Rc;

use meshwork_base::Tick;
use meshwork_decision::{AwaitedRoom, Cause, ConnectionLimit, ConnectionPermit};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::behind::Behind;
use super::h1::H1Client;
use super::line::{InLine, NotYet};
use super::open::Destination;
use super::pool::{EndpointPool, Making};
use crate::error::{Failure, Retry};
use crate::worker::Worker;

/// What one has whose turn it is.
pub(super) enum Turn {
    /// Leave to make a connection.
    Connect(Option<ConnectionPermit>, Making),
    Reuse(Box<H1Client>),
}

/// A place in the line before a limit, where also those wait who are on other workers or call other endpoints.
struct Place {
    awaited: AwaitedRoom,
    /// None while no limit stands in the way.
    called: Option<oneshot::Receiver<()>>,
}

impl Place {
    fn before(limit: ConnectionLimit, to: &Destination<'_>) -> Self {
        let (cluster, endpoint) = to.service.expect("only a service has limits");
        let (call, called) = oneshot::channel();
        // Who has left meanwhile passes it on.
        let awaited = cluster.await_room(endpoint, limit, move || _ = call.send(()));
        Self { awaited, called: Some(called) }
    }

    /// It was called in vain, or another limit stands in the way now.
    fn again(&mut self, limit: ConnectionLimit) {
        let (call, called) = oneshot::channel();
        self.awaited.again(limit, move || _ = call.send(()));
        self.called = Some(called);
    }

    /// It was called, and no limit stands in the way, but something else does.
    fn pass(&mut self) {
        self.awaited.pass();
        self.called = None;
    }

    /// Whether it is to join the line before this limit, or once more.
    fn is_to_join(&self, limit: ConnectionLimit) -> bool {
        self.called.is_none() || self.awaited.limit() != limit
    }

    /// Waits until a connection has ended; nobody waits in no line.
    async fn called(place: &mut Option<Self>) {
        match place.as_mut().and_then(|place| place.called.as_mut()) {
            // A sender that is gone has sent before.
            Some(called) => drop(called.await),
            None => pending().await,
        }
    }
}

/// One who waits, in its worker's line and, where a limit stands in the way, before that.
struct Waits<'a> {
    to: &'a Destination<'a>,
    pool: &'a EndpointPool,
    /// What it waits for is noted here.
    noted: Behind<'a>,
    late: NotYet,
    line: InLine<'a>,
    place: Option<Place>,
    /// Its place was called.
    is_called: bool,
    /// The limit has made it wait.
    limited: bool,
}

impl<'a> Waits<'a> {
    fn new(to: &'a Destination<'a>, pool: &'a EndpointPool, noted: Behind<'a>, late: NotYet) -> Self {
        let line = pool.line().join();
        let mut waits = Self { to, pool, noted, late, line, place: None, is_called: false, limited: false };
        waits.refused(late);
        waits
    }

    fn refused(&mut self, why: NotYet) {
        self.pool.line().set_late(why);
        self.noted.waits(why.into());
        let is_limit = matches!(why, NotYet::Limit(_));
        // One that waits is one that the limit made wait, however often it is woken in vain.
        if is_limit && !std::mem::replace(&mut self.limited, true) {
            self.to.count_waiting();
        }
        // Whoever came later thinks so as well, and is to wait before the limit.
        if is_limit && self.late == NotYet::Dials {
            self.line.call_next();
        }
        // What is given back calls the first in line, which has no use for it where only a new connection will do.
        if !may_reuse(self.to) && self.pool.has_idle() {
            self.line.call_next();
        }
        self.late = why;
    }

    /// Takes its place before the limit that stands in the way; true: that is new.
    fn joins(&mut self) -> bool {
        let is_called = std::mem::take(&mut self.is_called);
        match (self.late, &mut self.place) {
            (NotYet::Limit(limit), None) => self.place = Some(Place::before(limit, self.to)),
            (NotYet::Limit(limit), Some(place)) if is_called || place.is_to_join(limit) => {
                place.again(limit);
            }
            (NotYet::Dials, Some(place)) if is_called => {
                // Who waits on other workers may have use for it.
                place.pass();
                return false;
            }
            _ => return false,
        }
        true
    }

    /// It is its turn.
    fn goes(self, turn: &Turn, now: Tick) {
        self.noted.goes(now);
        if self.is_called
            && let (Some(place), Turn::Connect(Some(_), _)) = (self.place, turn)
        {
            place.awaited.used();
        }
    }

    fn in_vain(&self) -> Failure {
        // Whoever looked last knows best; one behind others has perhaps never looked.
        match self.pool.line().late() {
            NotYet::Dials => too_slow(self.to),
            NotYet::Limit(_) => self.to.over_limit(Cause::MaxConnections),
        }
    }
}

/// Waits in line until a new connection is within the limits and few others are being made, or a kept one is free.
/// Idle connections to other endpoints of the service make room. As in Envoy, a worker without any connection to an
/// endpoint may open one all the same: nothing else could ever serve those who wait for it.
pub(super) async fn admitted(
    worker: &Worker,
    to: &Destination<'_>,
    pool: &Rc<EndpointPool>,
    noted: Behind<'_>,
) -> Result<Turn, Failure> {
    // Whoever comes while others wait goes to the end of the line, and waits for what they wait for.
    let behind = pool.has_line();
    let late = if behind {
        pool.line().late()
    } else {
        match turn(worker, to, pool, false) {
            Ok(turn) => return Ok(turn),
            Err(why) => why,
        }
    };
    let mut waits = Waits::new(to, pool, noted, late);
    if behind && pool.has_idle() {
        // It lies there because those before can do nothing with it.
        pool.line().call_again();
    }
    let mut patience = std::pin::pin!(sleep(to.connect_timeout));
    // What ended before one of them joined has called whoever was before it.
    let mut may_look = !behind;
    loop {
        // What ended before it joined has called nobody: it is looked for once more, without waiting.
        if !(waits.joins() && may_look) {
            tokio::select! {
                () = waits.line.called() => {}
                () = Place::called(&mut waits.place) => waits.is_called = true,
                () = &mut patience => return Err(waits.in_vain()),
            }
        }
        may_look = true;
        // Leaving calls the next one.
        noted.in_time()?;
        match turn(worker, to, pool, true) {
            Ok(turn) => {
                waits.goes(&turn, worker.now());
                return Ok(turn);
            }
            Err(why) => waits.refused(why),
        }
    }
}

/// A connection, or leave to make one, without waiting.
///
/// # Errors
/// What it is when the wait is over in vain.
fn turn(worker: &Worker, to: &Destination<'_>, pool: &Rc<EndpointPool>, woken: bool) -> Result<Turn, NotYet> {
    let may_reuse = may_reuse(to);
    // What was given back meanwhile serves better than one more connection.
    if woken
        && may_reuse
        && let Some(client) = pool.take_idle()
    {
        return Ok(Turn::Reuse(client));
    }
    loop {
        let limit = match to.admit_connection() {
            Ok(permit) => return connecting(pool, permit),
            Err(_) if pool.has_none() => return connecting(pool, None),
            Err(limit) => limit,
        };
        let open = pool.open();
        match pool.take_idle() {
            Some(client) if may_reuse => return Ok(Turn::Reuse(client)),
            // It makes room for a new one, and so do those that their peers had closed.
            Some(_) => continue,
            None if pool.open() < open => continue,
            None => {}
        }
        let (cluster, _) = to.service.expect("only a service has limits");
        let makes_room = limit == ConnectionLimit::Service
            && cluster.endpoints().all().iter().any(|endpoint| worker.pools.evict_idle(endpoint.id));
        if !makes_room {
            return Err(NotYet::Limit(limit));
        }
    }
}

/// Whether a connection that has carried a request will do.
const fn may_reuse(to: &Destination<'_>) -> bool {
    !to.fresh && to.announcement.is_none()
}

fn connecting(pool: &Rc<EndpointPool>, permit: Option<ConnectionPermit>) -> Result<Turn, NotYet> {
    pool.make().map(|making| Turn::Connect(permit, making)).ok_or(NotYet::Dials)
}

fn too_slow(to: &Destination<'_>) -> Failure {
    let why = format!("{}: no turn to connect within {:?}", to.address, to.connect_timeout);
    Failure::upstream(Cause::ConnectTimeout, Retry::NothingSent).because(why)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::upstream::open::Speaks;

    #[test]
    fn one_behind_others_hears_of_what_stood_in_the_way_last() {
        let to = Destination {
            pool: 1,
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            speaks: Speaks::Http1,
            service: None,
            connect_timeout: Duration::from_secs(1),
            fresh: false,
            announcement: None,
        };
        let pool = EndpointPool::default();
        let limit = NotYet::Limit(ConnectionLimit::Endpoint);
        let [mut first, behind] = [limit, limit].map(|late| Waits::new(&to, &pool, Behind::default(), late));
        assert_eq!(behind.in_vain().cause, Cause::MaxConnections);
        first.refused(NotYet::Dials);
        assert_eq!(behind.in_vain().cause, Cause::ConnectTimeout, "the limit has gone meanwhile");
        first.refused(limit);
        assert_eq!(behind.in_vain().cause, Cause::MaxConnections);
    }
}
