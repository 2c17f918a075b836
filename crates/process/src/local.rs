//! Ports for this machine alone: on loopback, and called by an address.
//!
//! A browser on this machine reaches loopback too. A name that an attacker's DNS server points at it makes a page of
//! theirs "same origin" with us, so a request that came by such a name is not the operator's.

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse as _;

use crate::Problem;

/// Whether the host that was called is an IP address, or `localhost`.
#[must_use]
pub fn is_called_by_address<B>(request: &axum::http::Request<B>) -> bool {
    let named = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    let authority = named.map_or_else(|| Ok(request.uri().clone()), str::parse::<Uri>);
    let host = authority.ok().and_then(|authority| authority.host().map(str::to_ascii_lowercase));
    host.is_some_and(|host| {
        host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
    })
}

/// These routes for whoever calls them by an address; others are refused.
pub fn by_address(routes: Router) -> Router {
    routes.layer(middleware::from_fn(|request: Request, next: Next| async move {
        if is_called_by_address(&request) {
            return next.run(request).await;
        }
        let why = "this port is called by an IP address or as localhost; correct the Host header";
        Problem::new(StatusCode::FORBIDDEN, "not for this caller").detail(why).into_response()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_outside_is_not_this_machine() {
        let cases = [
            ("localhost", true),
            ("LocalHost:15000", true),
            ("127.20.0.1:15000", true),
            ("[::1]:1", true),
            ("evil.example:15014", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ];
        for (host, expected) in cases {
            let request = axum::http::Request::get("/").header(header::HOST, host).body(()).unwrap();
            assert_eq!(is_called_by_address(&request), expected, "{host}");
        }
        // HTTP/2 names it in the request's target.
        let request = axum::http::Request::get("http://evil.example/").body(()).unwrap();
        assert!(!is_called_by_address(&request));
    }
}
