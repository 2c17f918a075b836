//! HTTP/1.1 on either side, written byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use http::Method;
use meshwork_http1::{
    BodyDecoder, BodyLength, Decoded, Fields, HeadScan, KnownName, Limits, Parsed, RequestHead, RequestKind,
    ResponseHead, parse_request, parse_response,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::{Answered, Asked, Body, Message, Plan};

fn lines(fields: &[(String, String)]) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

/// Framing and bytes of a body, up to where it breaks off.
fn write_body(body: &Body) -> (String, Vec<u8>) {
    let bytes = body.bytes();
    if body.declared {
        let sent = if body.cut { bytes.len() / 2 } else { bytes.len() };
        return (format!("Content-Length: {}\r\n", bytes.len()), bytes[..sent].to_vec());
    }
    let mut out = Vec::new();
    for chunk in &body.chunks {
        out.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        out.extend(chunk);
        out.extend(b"\r\n");
    }
    if !body.cut {
        out.extend(format!("0\r\n{}\r\n", lines(&body.trailers)).into_bytes());
    }
    ("Transfer-Encoding: chunked\r\n".to_owned(), out)
}

fn known(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let ours = |name: &str| name.starts_with("x-") && name.len() == 3;
    fields.iter().map(|(n, v)| (text(n).to_lowercase(), text(v))).filter(|(n, _)| ours(n)).collect()
}

fn message(fields: &Fields) -> Message {
    let value = |name| fields.known(name).map(|value| String::from_utf8(value.to_vec()).unwrap());
    Message {
        fields: known(fields),
        cookie: value(KnownName::Cookie),
        te: value(KnownName::Te),
        length: value(KnownName::ContentLength),
        ..Message::default()
    }
}

/// Reads a body to its end, or to where it breaks off.
async fn read_body(tcp: &mut TcpStream, buf: &mut BytesMut, length: BodyLength, into: &mut Message) {
    let mut body = BodyDecoder::new(length);
    loop {
        match body.decode(buf, &Limits::default()).unwrap() {
            Decoded::Data(data) => into.body.extend(data),
            Decoded::End { trailers } => {
                into.whole = true;
                into.trailers = trailers.as_ref().map(known).unwrap_or_default();
                return;
            }
            Decoded::NeedMore => match tcp.read_buf(buf).await {
                Ok(1..) => {}
                Ok(0) if body.finish_eof().is_ok() => {}
                Ok(0) | Err(_) => return,
            },
        }
    }
}

pub(crate) async fn call(edge: SocketAddr, plan: &Plan) -> Answered {
    let mut tcp = TcpStream::connect(edge).await.unwrap();
    let mut head =
        format!("{} {} HTTP/1.1\r\nHost: shop\r\n{}", plan.method, plan.target, lines(&plan.fields));
    if !plan.cookies.is_empty() {
        head += &format!("Cookie: {}\r\n", plan.cookies.join("; "));
    }
    if plan.te {
        head += "TE: gzip;q=0.1, trailers\r\nConnection: TE\r\n";
    }
    let (framing, body) =
        if plan.method == Method::POST { write_body(&plan.request) } else { Default::default() };
    tcp.write_all(&[format!("{head}{framing}\r\n").into_bytes(), body].concat()).await.unwrap();
    let (mut buf, mut head, mut got) = (BytesMut::new(), ResponseHead::new(), Answered::default());
    let mut scan = HeadScan::default();
    let kind = RequestKind::from(&plan.method);
    loop {
        match parse_response(&buf, &Limits::default(), kind, &mut scan, &mut head).unwrap() {
            Parsed::Done { consumed } => {
                buf.advance(consumed);
                scan = HeadScan::default();
                if !head.is_informational() {
                    break;
                }
                got.interim.push(head.status);
            }
            Parsed::Incomplete => match tcp.read_buf(&mut buf).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return got,
            },
        }
    }
    got.status = head.status;
    got.message = message(&head.fields);
    read_body(&mut tcp, &mut buf, head.body, &mut got.message).await;
    got
}

pub(crate) async fn upstream(plan: Arc<Mutex<Plan>>, tell: mpsc::Sender<Asked>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, Arc::clone(&plan), tell.clone()));
        }
    });
    address
}

async fn serve(mut tcp: TcpStream, plan: Arc<Mutex<Plan>>, tell: mpsc::Sender<Asked>) {
    let (mut buf, mut head) = (BytesMut::new(), RequestHead::new());
    loop {
        let mut scan = HeadScan::default();
        let consumed = loop {
            match parse_request(&buf, &Limits::default(), &mut scan, &mut head).unwrap() {
                Parsed::Done { consumed } => break consumed,
                Parsed::Incomplete => match tcp.read_buf(&mut buf).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                },
            }
        };
        buf.advance(consumed);
        let mut asked = Asked {
            method: head.method.clone(),
            target: head.target.as_str().to_owned(),
            host: head.authority().unwrap().to_owned(),
            message: message(&head.fields),
        };
        read_body(&mut tcp, &mut buf, head.body, &mut asked.message).await;
        let plan = plan.lock().clone();
        tell.send(asked).await.unwrap();
        if !answer(&mut tcp, &plan).await {
            return;
        }
    }
}

/// Answers by the plan; whether the connection goes on.
async fn answer(tcp: &mut TcpStream, plan: &Plan) -> bool {
    let hints = if plan.hints { "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" } else { "" };
    let bodiless = plan.method == Method::HEAD || matches!(plan.status, 204 | 304);
    let (framing, body) = write_body(&plan.response);
    let (framing, body) = match plan.status {
        204 => (String::new(), vec![]),
        _ if bodiless => (framing, vec![]),
        _ => (framing, body),
    };
    let head = format!("{hints}HTTP/1.1 {} Any\r\n{framing}\r\n", plan.status);
    let sent = tcp.write_all(&[head.into_bytes(), body].concat()).await;
    sent.is_ok() && (bodiless || !plan.response.cut)
}
