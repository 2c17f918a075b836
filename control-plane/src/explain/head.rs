//! What a proxy makes of a request's head before it decides anything. The parser that reads heads there reads here what a
//! client of HTTP/1.1 would write, under the limits that a proxy has unless its flags say otherwise.

use axum::http::Method;
use meshwork_http1::{HeadScan, KnownName, Limits, ParseError, RequestHead, parse_request};
use meshwork_process::Problem;

use super::ask::{Ask, bad};

/// Why a proxy refuses it, if it does.
///
/// # Errors
/// There is more in it than one request.
pub(super) fn refusal(ask: &Ask) -> Result<Option<ParseError>, Problem> {
    let target =
        if ask.method() == Method::CONNECT.as_str() { authority(ask) } else { ask.path().to_owned() };
    let mut text = format!("{} {target} HTTP/1.1\r\nHost: {}\r\n", ask.method(), ask.host);
    for (name, value) in &ask.headers {
        text.extend([name, ": ", value, "\r\n"]);
    }
    text.push_str("\r\n");
    let mut head = RequestHead::new();
    match parse_request(text.as_bytes(), &Limits::default(), &mut HeadScan::default(), &mut head) {
        Err(error) => Ok(Some(error)),
        Ok(_) if head.target.as_str() != target => Err(bad("path", "one path: this one ends its line")),
        Ok(_) if head.fields.known(KnownName::Host) != Some(ask.authority().as_bytes()) => {
            Err(bad("host", "one host: this one ends its line"))
        }
        Ok(_) => Ok(None),
    }
}

/// What CONNECT asks for: it always names a port.
fn authority(ask: &Ask) -> String {
    match meshwork_decision::split_authority(&ask.host) {
        (host, None) => format!("{host}:{}", ask.port.unwrap_or(80)),
        _ => ask.host.clone(),
    }
}
