//! HTTP/2 on either side.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::support::h2::{h2_client, h2_upstream};
use crate::{Answered, Asked, Body, Message, Plan};

fn map(fields: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
    }
    map
}

fn known(map: &HeaderMap) -> Vec<(String, String)> {
    let ours = map.iter().filter(|(name, _)| name.as_str().starts_with("x-") && name.as_str().len() == 3);
    ours.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

fn message(map: &HeaderMap) -> Message {
    let value = |name: &str| map.get(name).map(|value| value.to_str().unwrap().to_owned());
    Message {
        fields: known(map),
        cookie: value("cookie"),
        te: value("te"),
        length: value("content-length"),
        ..Message::default()
    }
}

async fn read_body(mut body: RecvStream, into: &mut Message) {
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        let _ = body.flow_control().release_capacity(data.len());
        into.body.extend(data);
    }
    if let Ok(trailers) = body.trailers().await {
        into.whole = true;
        into.trailers = trailers.as_ref().map(known).unwrap_or_default();
    }
}

/// The other side may break the exchange off before all of it is written; what came of that is looked at afterwards.
fn write_body(mut send: SendStream<Bytes>, body: &Body) {
    for chunk in &body.chunks {
        if send.send_data(Bytes::from(chunk.clone()), false).is_err() {
            return;
        }
    }
    if body.cut {
        send.send_reset(h2::Reason::INTERNAL_ERROR);
    } else {
        drop(send.send_trailers(map(&body.trailers)));
    }
}

pub(crate) async fn call(edge: SocketAddr, plan: &Plan) -> Answered {
    let mut client = h2_client(edge).await;
    let mut request = Request::new(());
    *request.method_mut() = plan.method.clone();
    *request.uri_mut() = format!("http://shop{}", plan.target).parse().unwrap();
    *request.headers_mut() = map(&plan.fields);
    for cookie in &plan.cookies {
        request.headers_mut().append("cookie", cookie.parse().unwrap());
    }
    if plan.te {
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    }
    let has_body = plan.method == Method::POST;
    if has_body && plan.request.declared {
        request.headers_mut().insert("content-length", plan.request.bytes().len().into());
    }
    let (mut response, send) = client.send_request(request, !has_body).unwrap();
    if has_body {
        write_body(send, &plan.request);
    }
    let mut got = Answered::default();
    while let Some(Ok(interim)) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
        got.interim.push(interim.status().as_u16());
    }
    let Ok(response) = response.await else { return got };
    let (head, body) = response.into_parts();
    got.status = head.status.as_u16();
    got.message = message(&head.headers);
    read_body(body, &mut got.message).await;
    got
}

pub(crate) async fn upstream(plan: Arc<Mutex<Plan>>, tell: mpsc::Sender<Asked>) -> SocketAddr {
    let up = h2_upstream(usize::MAX, move |_, request, respond| {
        let (plan, tell) = (plan.lock().clone(), tell.clone());
        async move { serve(request, respond, plan, tell).await }
    });
    up.await.address
}

async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    plan: Plan,
    tell: mpsc::Sender<Asked>,
) {
    let (head, body) = request.into_parts();
    let mut asked = Asked {
        method: head.method,
        target: head.uri.path_and_query().unwrap().to_string(),
        host: head.uri.authority().unwrap().to_string(),
        message: message(&head.headers),
    };
    read_body(body, &mut asked.message).await;
    tell.send(asked).await.unwrap();
    if plan.hints {
        respond.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
    }
    let mut response = Response::builder().status(plan.status).body(()).unwrap();
    let bodiless = plan.method == Method::HEAD || matches!(plan.status, 204 | 304);
    if plan.response.declared && plan.status != 204 {
        response.headers_mut().insert("content-length", plan.response.bytes().len().into());
    }
    let send = respond.send_response(response, bodiless).unwrap();
    if !bodiless {
        write_body(send, &plan.response);
    }
}
