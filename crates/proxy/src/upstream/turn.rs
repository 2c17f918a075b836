//! Whose turn it is to have a connection over HTTP/1.1: limits, and those who wait before them.

use std::future::pending;
use std::rc::Rc;

use meshwork_decision::{AwaitedRoom, Cause, ConnectionLimit, ConnectionPermit};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::h1::H1Client;
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

/// Why it is not somebody's turn yet.
#[derive(Clone, Copy)]
enum NotYet {
    /// Many others are being made, or others have waited longer.
    InLine,
    /// A limit stands in the way.
    Limit(ConnectionLimit),
}

/// A place in the line before a limit, where also those wait who are on other workers or call other endpoints.
struct Place {
    awaited: AwaitedRoom,
    called: oneshot::Receiver<()>,
}

impl Place {
    fn before(limit: ConnectionLimit, to: &Destination<'_>) -> Self {
        let (cluster, endpoint) = to.service.expect("only a service has limits");
        let (call, called) = oneshot::channel();
        let awaited = cluster.await_room(endpoint, limit, move || {
            // Who has left meanwhile passes it on.
            let _ = call.send(());
        });
        Self { awaited, called }
    }

    /// Waits until a connection has ended; nobody waits in no line.
    async fn called(place: &mut Option<Self>) {
        match place {
            // A sender that is gone has sent before.
            Some(place) => drop((&mut place.called).await),
            None => pending().await,
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
) -> Result<Turn, Failure> {
    let mut limited = false;
    let mut try_turn = |woken| {
        turn(worker, to, pool, woken).inspect_err(|why| {
            // One that waits is one that the limit made wait, however often it is woken in vain.
            if matches!(why, NotYet::Limit(_)) && !std::mem::replace(&mut limited, true) {
                to.count_refused();
            }
        })
    };
    let mut late = NotYet::InLine;
    // Whoever comes while others wait goes to the end of the line.
    if !pool.has_line() {
        match try_turn(false) {
            Ok(turn) => return Ok(turn),
            Err(why) => late = why,
        }
    }
    let mut patience = std::pin::pin!(sleep(to.connect_timeout));
    let mut place: Option<Place> = None;
    loop {
        let mut is_called = false;
        match late {
            NotYet::Limit(limit) if place.as_ref().is_none_or(|place| place.awaited.limit() != limit) => {
                // What ended before has called nobody: it is looked for once more, without waiting.
                place = Some(Place::before(limit, to));
            }
            NotYet::Limit(_) | NotYet::InLine => tokio::select! {
                () = pool.freed() => {}
                () = Place::called(&mut place) => is_called = true,
                () = &mut patience => {
                    return Err(match late {
                        NotYet::InLine => too_slow(to),
                        NotYet::Limit(_) => to.over_limit(Cause::MaxConnections),
                    });
                }
            },
        }
        match try_turn(true) {
            Ok(turn) => {
                // What else is free finds whoever comes next: of several wake-ups at once only one is kept.
                pool.wake_one();
                return Ok(turn);
            }
            Err(why) => late = why,
        }
        if let Some(place) = place.take_if(|_| is_called) {
            place.awaited.in_vain();
        }
    }
}

/// A connection, or leave to make one, without waiting.
///
/// # Errors
/// What it is when the wait is over in vain.
fn turn(worker: &Worker, to: &Destination<'_>, pool: &Rc<EndpointPool>, woken: bool) -> Result<Turn, NotYet> {
    let may_reuse = !to.fresh && to.announcement.is_none();
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

fn connecting(pool: &Rc<EndpointPool>, permit: Option<ConnectionPermit>) -> Result<Turn, NotYet> {
    pool.make().map(|making| Turn::Connect(permit, making)).ok_or(NotYet::InLine)
}

fn too_slow(to: &Destination<'_>) -> Failure {
    let why = format!("{}: no turn to connect within {:?}", to.address, to.connect_timeout);
    Failure::upstream(Cause::ConnectTimeout, Retry::NothingSent).because(why)
}
