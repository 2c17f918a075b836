//! What proxies ask the authority for, on the mTLS port: the first SVID with a token, the next with the one they have, also
//! when that has expired not too long ago, or begins only later since a clock was set back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use meshwork_api::identity::{Der, Issued, JoinRequest, RenewRequest};
use meshwork_base::{Clock, SpiffeId};
use meshwork_identity::{Authority, AuthorityError, Identity, JoinToken, Peer, Refusal, Shown, TokenError};
use meshwork_process::Problem;
use meshwork_xds::transport::mtls::Caller;

use super::api::{bad_body, failed};
use super::tokens::{RedeemError, Tokens};

/// A token and a signing request are far below this.
const LIMIT: usize = 32 * 1024;

/// What issuing takes; it does not keep the port open.
pub(crate) struct Issuer {
    pub(crate) authority: Arc<Authority>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) tokens: Tokens,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) svid_ttl: Duration,
    /// How long after its end an SVID is still renewed.
    pub(crate) svid_grace: Duration,
    /// SVIDs issued to others so far.
    pub(crate) issued: AtomicU64,
}

pub(crate) fn router(issuer: Arc<Issuer>) -> Router {
    Router::new()
        .route("/v1/identity/join", post(join))
        .route("/v1/identity/renew", post(renew))
        .layer(DefaultBodyLimit::max(LIMIT))
        .with_state(issuer)
}

pub(crate) fn token_problem(error: TokenError) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "the join token is refused")
        .detail(error.to_string())
        .code(error.code())
        .with("cause", error.cause())
}

fn refused(status: StatusCode, refusal: &Refusal) -> Problem {
    Problem::new(status, "the peer is refused")
        .detail(refusal.to_string())
        .code(refusal.code())
        .with("cause", refusal.cause())
}

fn redeem_problem(error: RedeemError) -> Problem {
    match error {
        RedeemError::Token(error) => {
            tracing::warn!(cause = error.cause(), "a join is refused");
            token_problem(error)
        }
        RedeemError::Trust(error) => failed(&error),
    }
}

async fn join(
    State(issuer): State<Arc<Issuer>>,
    body: Result<Json<JoinRequest>, JsonRejection>,
) -> Result<Json<Issued>, Problem> {
    let Json(request) = body.map_err(|why| bad_body(&why))?;
    let token = JoinToken::parse(&request.token).map_err(token_problem)?;
    let csr = &request.csr.0;
    let id = issuer.tokens.holder(&token, csr).await.map_err(redeem_problem)?;
    // Signed before the use is taken: a bad request costs none.
    let issued = issuer.issue(csr, &id)?;
    issuer.tokens.redeem(&token, csr).await.map_err(redeem_problem)?;
    tracing::info!(%id, token = token.id(), "a workload has joined");
    Ok(Json(issued))
}

async fn renew(
    State(issuer): State<Arc<Issuer>>,
    caller: Option<Extension<Caller>>,
    body: Result<Json<RenewRequest>, JsonRejection>,
) -> Result<Json<Issued>, Problem> {
    // The handshake has proven the key of each, and that nobody but its holder has sent this request.
    let Some(Extension(Caller(Shown::InForce(peer) | Shown::Lapsed(peer) | Shown::Early(peer)))) = caller
    else {
        return Err(refused(StatusCode::UNAUTHORIZED, &Refusal::NoCertificate));
    };
    let Json(request) = body.map_err(|why| bad_body(&why))?;
    issuer.check_time(&peer)?;
    issuer.check_denied(&peer)?;
    let issued = issuer.issue(&request.csr.0, &peer.id)?;
    let now = issuer.clock.wall();
    match now.checked_sub(peer.not_after) {
        Some(ago) if !ago.is_zero() => {
            tracing::info!(id = %peer.id, seconds = ago.as_secs(), "an SVID that had expired is renewed");
        }
        _ if now < peer.not_before => {
            let seconds = peer.not_before.saturating_sub(now).as_secs();
            tracing::info!(id = %peer.id, seconds, "an SVID whose time had not come is renewed");
        }
        _ => tracing::debug!(id = %peer.id, "an SVID is renewed"),
    }
    Ok(Json(issued))
}

impl Issuer {
    /// An SVID in force is renewed, and one that has expired a while ago: the control plane may have been away longer than
    /// it lived.
    fn check_time(&self, peer: &Peer) -> Result<(), Problem> {
        if self.clock.wall().saturating_sub(peer.not_after) <= self.svid_grace {
            return Ok(());
        }
        let refusal = Refusal::SvidExpired { id: peer.id.clone(), not_after: peer.not_after };
        tracing::warn!(%refusal, "an SVID is not renewed, since it expired longer ago than --svid-grace");
        let grace = rounded(self.svid_grace);
        let detail = format!(
            "{refusal}, longer ago than one is renewed here ({grace}); join again with a new token, or raise --svid-grace of the control plane"
        );
        Err(refused(StatusCode::FORBIDDEN, &refusal).detail(detail))
    }

    fn check_denied(&self, peer: &Peer) -> Result<(), Problem> {
        let bundle = self.identity.bundle();
        let denied = if self.clock.wall() < peer.not_before {
            bundle.check_denied_early(peer)
        } else {
            bundle.check_denied(peer)
        };
        denied.map_err(|refusal| refused(StatusCode::FORBIDDEN, &refusal))
    }

    fn issue(&self, csr: &[u8], id: &SpiffeId) -> Result<Issued, Problem> {
        let issued =
            self.authority.issue(csr, id, self.svid_ttl).map_err(|error| authority_problem(&error))?;
        // An identity that is denied altogether gets no SVID that all would refuse.
        let peer = issued.chain.first().map(Peer::read).transpose();
        let peer = peer.map_err(|refusal| refused(StatusCode::INTERNAL_SERVER_ERROR, &refusal))?;
        peer.map_or(Ok(()), |peer| self.check_denied(&peer))?;
        self.issued.fetch_add(1, Ordering::Relaxed);
        let bundle = serde_json::from_str(&self.identity.bundle().to_json());
        Ok(Issued {
            chain: issued.chain.iter().map(|certificate| Der(certificate.to_vec())).collect(),
            bundle: bundle.expect("a bundle is written as JSON"),
        })
    }
}

/// As the flag is written, in its largest unit that is not zero.
fn rounded(time: Duration) -> String {
    match time.as_secs() {
        hours @ 3600.. => format!("{}h", hours / 3600),
        minutes @ 60.. => format!("{}m", minutes / 60),
        seconds => format!("{seconds}s"),
    }
}

fn authority_problem(error: &AuthorityError) -> Problem {
    let status = match error {
        AuthorityError::Csr(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if status.is_server_error() {
        tracing::error!(%error, "no SVID could be issued");
    }
    Problem::new(status, "no SVID is issued").detail(error.to_string()).code(error.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_is_told_in_its_largest_unit() {
        let told = |seconds| rounded(Duration::from_secs(seconds));
        assert_eq!([told(720 * 3600), told(3600), told(3599)], ["720h", "1h", "59m"]);
        assert_eq!([told(60), told(59), told(0)], ["1m", "59s", "0s"]);
    }
}
