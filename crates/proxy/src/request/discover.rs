//! A service that an application calls for the first time: it is asked for, and the request waits.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use meshwork_decision::{Cause, split_authority};

use super::deadline::Deadlines;
use super::transfer;
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::mesh::{Found, OnDemand, Place};
use crate::timers::timeout;
use crate::worker::View;

/// The host of an authority whose service no snapshot has, and who can be asked for it.
pub(crate) fn missing<'a>(
    conn: &'a Conn,
    view: &View,
    authority: Option<&'a str>,
) -> Option<(&'a str, &'a dyn OnDemand)> {
    let (Place::Outbound(_), Some(on_demand)) = (conn.place, &conn.worker.shared.mesh.on_demand) else {
        return None;
    };
    let (host, _) = split_authority(authority?);
    view.snapshot.outbound(host).is_none().then_some((host, &**on_demand))
}

/// Waits for a snapshot with the service.
///
/// # Errors
/// There is none, nobody answered in time, or nobody waits for the request any more.
pub(crate) async fn wait(
    conn: &Conn,
    down: &mut Down<'_>,
    (host, on_demand): (&str, &dyn OnDemand),
) -> Result<Rc<View>, Failure> {
    let patience = conn.worker.shared.settings.discovery_timeout;
    let unavailable =
        |why: &str| Failure::local(Cause::DiscoveryUnavailable).because(format!("{host}: {why}"));
    let asking = timeout(patience, async {
        match on_demand.find(host, patience).await {
            Found::Held => Ok(delivered(conn, host).await),
            Found::Unknown => Err(Failure::local(Cause::UnknownService).because(host)),
            Found::Unavailable => Err(unavailable("the control plane does not answer")),
        }
    });
    let mut asking = pin!(asking);
    let mut deadlines = Deadlines::default();
    conn.entry.pause(patience, conn.worker.now());
    let found = poll_fn(|cx| {
        if let Poll::Ready(answer) = asking.as_mut().poll(cx) {
            return Poll::Ready(answer.unwrap_or_else(|_| Err(unavailable("no answer in time"))));
        }
        transfer::poll_interrupted(cx, conn, down, &mut deadlines).map(Err)
    })
    .await;
    conn.entry.go_on(conn.worker.now());
    found
}

/// The control plane has delivered the service; the snapshot with it may still be in the making.
async fn delivered(conn: &Conn, host: &str) -> Rc<View> {
    loop {
        // Before we look: a snapshot that comes between that and our wait wakes us too.
        let applied = conn.worker.bells.applied.notified();
        let view = conn.worker.view();
        if view.snapshot.outbound(host).is_some() {
            return view;
        }
        drop(view);
        applied.await;
    }
}
