//! Opaque connections that other proxies of the mesh bring: HBONE, a CONNECT over HTTP/2 over mutual TLS. The tunnel goes
//! to the port of the application that the TLS handshake names, or else the CONNECT.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Method, Response, StatusCode};
use meshwork_decision::{Cause, Inbound, InboundPort, UNTOLD, split_authority};
use meshwork_telemetry::Phase;
use tokio::net::TcpStream;

use super::end::End;
use super::journey::Journey;
use super::outbound::{self, Inside};
use super::watch::{App, Watch};
use super::{Carried, route, transfer};
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::http::h2_body::{H2Sink, H2Source};
use crate::http::payload::{Backlog, Payload};
use crate::http::received::Received;
use crate::http::stream::told;
use crate::http::tunnel::Tunnel;
use crate::io::Io;
use crate::request::answer::shows_http;
use crate::upstream::connect::{CONNECT_TIMEOUT, connect};
use crate::worker::View;

/// Serves one stream.
pub(crate) async fn serve(
    conn: Conn,
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Payload>,
    backlog: &Rc<Backlog>,
    received: &Rc<Received>,
) {
    let view = conn.worker.view();
    let cx = Carried::of(&conn);
    let mut journey = Journey::begin_inbound(&conn, &view);
    let opened = Box::pin(open(&cx, &conn, &view, &request, &mut journey)).await;
    let answered = match &opened {
        Ok(_) => answer(&mut respond, StatusCode::OK, backlog, false),
        Err(failure) => {
            let status = failure.cause.status().and_then(|status| StatusCode::from_u16(status).ok());
            answer(&mut respond, status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), backlog, true)
        }
    };
    let outcome = match (opened, answered) {
        (Ok((mut app, inbound, port)), Ok(sink)) => {
            let source = H2Source::new(request.into_body(), received, &conn.worker.shared.settings.limits);
            let tunnel = Tunnel::new(source, sink, None);
            let mut down = match port.protocol.is_opaque() {
                true => End::Tunnel(Box::new(tunnel)),
                false => {
                    let app = App { inbound: Arc::clone(inbound), port: port.app_port };
                    End::Opaque(Box::new((tunnel, Watch::new(app))))
                }
            };
            let moved =
                transfer::run(&cx, None, (&mut down, &mut app), (Bytes::new(), Bytes::new()), &mut journey)
                    .await;
            if let End::Opaque(watched) = &down
                && watched.1.has_met_a_server()
            {
                shows_http(port);
            }
            moved
        }
        (Err(failure), _) => Err(failure),
        (Ok(_), Err(error)) => {
            let why = format!("answering the caller: {}", told(&error));
            Err(Failure::downstream(Cause::DownstreamReset).because(why))
        }
    };
    if let Err(failure) = outcome {
        journey.failed(&failure);
    }
}

fn answer(
    respond: &mut SendResponse<Payload>,
    status: StatusCode,
    backlog: &Rc<Backlog>,
    end: bool,
) -> Result<H2Sink, h2::Error> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    Ok(H2Sink::new(respond.send_response(response, end)?, backlog, end))
}

/// The application, and its port among those of its instance.
async fn open<'v>(
    cx: &Carried<'_>,
    conn: &Conn,
    view: &'v View,
    request: &http::Request<h2::RecvStream>,
    journey: &mut Journey,
) -> Result<(End, &'v Arc<Inbound>, &'v InboundPort), Failure> {
    if *request.method() != Method::CONNECT {
        let why = "this port takes tunnels only: CONNECT over HTTP/2";
        return Err(Failure::downstream(Cause::NotImplemented).because(why));
    }
    let authority = request.uri().authority().map_or("", http::uri::Authority::as_str);
    journey.named(Some(authority));
    journey.enter(Phase::Overload);
    conn.worker.check_memory()?;
    journey.enter(Phase::Route);
    let (inbound, port) = app_port(conn, view, authority)?;
    journey.own(port);
    journey.enter(Phase::Authorize);
    port.admit(conn.peer_id()).map_err(|cause| Failure::downstream(cause).because(&*port.sni))?;
    route::authorize(&port.authorization, conn.peer_id())?;
    // What its application speaks is nothing to who may not call it.
    takes_tunnels(inbound, port)?;
    let address = (conn.worker.shared.settings.app_address, port.app_port).into();
    journey.application(address);
    journey.enter(Phase::Connect);
    let dialing = connect(address, CONNECT_TIMEOUT);
    let tcp: TcpStream = cx.unless_ended(Box::pin(dialing)).await?;
    Ok((End::Socket(Io::Tcp(tcp)), inbound, port))
}

/// What the application is told of callers, and what keeps them within bounds, comes with requests.
fn takes_tunnels(inbound: &Inbound, port: &InboundPort) -> Result<(), Failure> {
    let why = match outbound::declared(port.protocol) {
        Some(Inside::Opaque) => return Ok(()),
        Some(Inside::Http1 | Inside::Http2) => "its port declares HTTP: it takes requests, and no tunnels",
        // Which bytes it would take for a request nobody knows better than the application.
        None if inbound.speaks_http(port.app_port) => {
            "its application has answered in HTTP, or another service declares that it does: it takes requests, and no tunnels unless its port declares tcp"
        }
        None => return Ok(()),
    };
    Err(Failure::downstream(Cause::DownstreamProtocolError).because(why))
}

/// The application's port: as for requests, by the name of the handshake, which callers in the mesh set; for others by the
/// port that the CONNECT names. Either way that must be the one, or a caller who wants something else would be told that he
/// has it.
fn app_port<'v>(
    conn: &Conn,
    view: &'v View,
    authority: &str,
) -> Result<(&'v Arc<Inbound>, &'v InboundPort), Failure> {
    let unknown = |why: &str| Failure::local(Cause::UnknownAppPort).because(Arc::<str>::from(why));
    let inbound = view.snapshot.inbound().ok_or_else(|| unknown(UNTOLD))?;
    let port = match conn.sni.as_deref().filter(|sni| sni.ends_with(".mesh")) {
        Some(sni) => inbound.by_sni(sni).ok_or_else(|| unknown(sni))?,
        None => inbound.by_port(split_authority(authority).1).map_err(|_| unknown(authority))?,
    };
    if port.is_meant_by(authority) { Ok((inbound, port)) } else { Err(unknown(authority)) }
}
