//! What operators ask of the trust anchor, on the API port.
//!
//! | path | what |
//! |---|---|
//! | `POST /v1/tokens` `{namespace, workload, uses, ttlSeconds}` | makes a join token, shown this once |
//! | `GET /v1/tokens` | all that are remembered, without their secrets |
//! | `DELETE /v1/tokens/ID` | takes one back |
//! | `POST /v1/identity/deny` `{spiffeId or serial, issuedBefore?}` | takes trust away, closes live connections |
//! | `GET /v1/identity/deny` | all entries |
//! | `DELETE /v1/identity/deny/ID` | gives trust back |
//! | `GET /v1/identity/refused` | the connections that were refused last, with their causes |

use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use axum::{Json, Router};
use meshwork_api::identity::{CONTROL_PLANE, Token, TokenRequest};
use meshwork_base::clock::rfc3339_millis;
use meshwork_base::{Namespace, ObjectName, SpiffeId};
use meshwork_identity::Denied;
use meshwork_process::Problem;
use serde::{Deserialize, Serialize};

use super::deny::{Entry, hex};
use super::tokens::{Kept, RedeemError};
use super::{Trust, TrustError, issue};
use crate::codes;

/// How many instances one token may admit, and for how long.
const MOST_USES: u32 = 1000;
const LONGEST: Duration = Duration::from_hours(24 * 365);

pub(crate) fn router(trust: Trust) -> Router {
    Router::new()
        .route("/v1/tokens", get(tokens).post(create_token))
        .route("/v1/tokens/{id}", delete(remove_token))
        .route("/v1/identity/deny", get(entries).post(deny))
        .route("/v1/identity/deny/{id}", delete(allow))
        .route("/v1/identity/refused", get(refused))
        .with_state(trust)
}

pub(crate) fn bad_body(why: &JsonRejection) -> Problem {
    Problem::new(why.status(), "the body cannot be read").detail(why.body_text()).code(codes::BAD_BODY)
}

pub(crate) fn failed(error: &TrustError) -> Problem {
    tracing::error!(%error, "the trust anchor failed");
    let (status, title) = match error {
        TrustError::Store(error) => {
            (StatusCode::from_u16(error.status()), "the control plane's store failed")
        }
        TrustError::NotKept(error) => {
            (StatusCode::from_u16(error.status()), "the deny entry is in force and not kept")
        }
        _ => (Ok(StatusCode::INTERNAL_SERVER_ERROR), "the trust anchor failed"),
    };
    Problem::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), title)
        .detail(error.to_string())
        .code(error.code())
}

fn bad(name: &str, why: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad parameter")
        .detail(format!("`{name}`: {why}"))
        .code(codes::BAD_PARAMETER)
        .with("parameter", name)
}

fn own_identity(what: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "the control plane's identity is its own")
        .detail(format!("{what}; name another workload"))
        .code(codes::OWN_IDENTITY)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenView {
    id: String,
    spiffe_id: SpiffeId,
    uses: u32,
    uses_left: u32,
    created: String,
    expires: String,
    /// `valid`, `usedUp` or `expired`.
    state: &'static str,
}

impl TokenView {
    fn new(kept: Kept, now: Duration) -> Self {
        let Kept { record, uses, created } = kept;
        let state = match () {
            () if now >= record.expires => "expired",
            () if record.uses_left == 0 => "usedUp",
            () => "valid",
        };
        Self {
            state,
            uses,
            uses_left: record.uses_left,
            created: rfc3339_millis(created),
            expires: rfc3339_millis(record.expires),
            spiffe_id: record.spiffe_id,
            id: record.id,
        }
    }
}

async fn create_token(
    State(trust): State<Trust>,
    body: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<Token>), Problem> {
    let Json(request) = body.map_err(|why| bad_body(&why))?;
    let namespace =
        Namespace::new(&request.namespace).map_err(|error| bad("namespace", &error.to_string()))?;
    let workload = ObjectName::new(&request.workload).map_err(|error| bad("workload", &error.to_string()))?;
    if (namespace.as_str(), workload.as_str()) == CONTROL_PLANE {
        return Err(own_identity("whoever has its identity can take the tokens of all others"));
    }
    if !(1..=MOST_USES).contains(&request.uses) {
        return Err(bad("uses", &format!("it must be 1 to {MOST_USES}")));
    }
    let ttl = Duration::from_secs(request.ttl_seconds);
    if ttl.is_zero() || ttl > LONGEST {
        return Err(bad("ttlSeconds", &format!("it must be 1 to {}", LONGEST.as_secs())));
    }
    let issuer = &trust.inner.issuer;
    let id = SpiffeId::new(issuer.authority.trust_domain(), &namespace, &workload);
    let created = issuer.tokens.create(id, request.uses, ttl, issuer.authority.pin()).await;
    let (token, kept) = created.map_err(|error| match error {
        RedeemError::Token(error) => issue::token_problem(error),
        RedeemError::Trust(error) => failed(&error),
    })?;
    tracing::info!(token = kept.record.id, id = %kept.record.spiffe_id, uses = kept.uses, "join token made");
    let answer = Token {
        token: token.to_string(),
        spiffe_id: kept.record.spiffe_id.to_string(),
        expires: rfc3339_millis(kept.record.expires),
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn tokens(State(trust): State<Trust>) -> Result<Json<Vec<TokenView>>, Problem> {
    let issuer = &trust.inner.issuer;
    let now = issuer.clock.wall();
    let kept = issuer.tokens.list().await.map_err(|error| failed(&error))?;
    Ok(Json(kept.into_iter().map(|kept| TokenView::new(kept, now)).collect()))
}

async fn remove_token(State(trust): State<Trust>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    if trust.inner.issuer.tokens.remove(&id).await.map_err(|error| failed(&error))? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::new(StatusCode::NOT_FOUND, "no such join token")
        .detail(format!("there is no join token {id}; GET /v1/tokens lists what there is"))
        .code(codes::NO_SUCH_TOKEN))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DenyRequest {
    spiffe_id: Option<String>,
    serial: Option<String>,
    issued_before: Option<String>,
}

impl DenyRequest {
    fn parse(self) -> Result<Denied, Problem> {
        match (self.spiffe_id, self.serial) {
            (Some(id), None) => {
                let id = SpiffeId::parse(&id).map_err(|error| bad("spiffeId", &error.to_string()))?;
                let issued_before = self.issued_before.as_deref().map(instant).transpose()?;
                Ok(Denied::Identity { id, issued_before, made: None })
            }
            (None, Some(_)) if self.issued_before.is_some() => {
                Err(bad("issuedBefore", "it goes with `spiffeId`; a serial names one certificate"))
            }
            (None, Some(serial)) => {
                let why = "it must be hexadecimal bytes, as `openssl x509 -serial` prints them";
                Ok(Denied::Serial { serial: unhex(&serial).ok_or_else(|| bad("serial", why))? })
            }
            _ => Err(bad("spiffeId", "name either `spiffeId` or `serial`")),
        }
    }
}

/// A time since the Unix epoch, written as RFC 3339 has it.
fn instant(text: &str) -> Result<Duration, Problem> {
    let time: Option<prost_types::Timestamp> = text.parse().ok();
    let seconds = time.and_then(|time| u64::try_from(time.seconds).ok().map(|seconds| (seconds, time.nanos)));
    let (seconds, nanos) = seconds
        .ok_or_else(|| bad("issuedBefore", "it must be a time like 2026-01-31T12:00:00Z (RFC 3339)"))?;
    Ok(Duration::new(seconds, u32::try_from(nanos).unwrap_or(0)))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let pair = |pair: &[u8]| {
        let text =
            std::str::from_utf8(pair).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u8::from_str_radix(text, 16).ok()
    };
    if digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() > 64 {
        return None;
    }
    digits.chunks(2).map(pair).collect()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryView {
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<SpiffeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_before: Option<String>,
    created: String,
}

impl From<Entry> for EntryView {
    fn from(Entry { id, denied, created }: Entry) -> Self {
        let (spiffe_id, serial, issued_before) = match denied {
            Denied::Identity { id, issued_before, .. } => (Some(id), None, issued_before.map(rfc3339_millis)),
            Denied::Serial { serial } => (None, Some(hex(&serial)), None),
        };
        Self { id, spiffe_id, serial, issued_before, created: rfc3339_millis(created) }
    }
}

async fn deny(
    State(trust): State<Trust>,
    body: Result<Json<DenyRequest>, JsonRejection>,
) -> Result<(StatusCode, Json<EntryView>), Problem> {
    let Json(request) = body.map_err(|why| bad_body(&why))?;
    let denied = request.parse()?;
    let issuer = &trust.inner.issuer;
    let svid = issuer.identity.svid();
    let is_own = match &denied {
        Denied::Identity { id, .. } => id == svid.id(),
        Denied::Serial { serial } => *serial == svid.as_peer().serial,
    };
    if is_own {
        return Err(own_identity("without its identity no proxy could reach it"));
    }
    if let Denied::Identity { id, .. } = &denied
        && id.trust_domain() != issuer.authority.trust_domain().as_str()
    {
        let domain = issuer.authority.trust_domain();
        return Err(bad("spiffeId", &format!("{id} is not of trust domain {domain}, and is refused anyway")));
    }
    let entry = trust.inner.deny.add(denied, issuer.clock.wall()).await.map_err(|error| failed(&error))?;
    Ok((StatusCode::CREATED, Json(entry.into())))
}

async fn entries(State(trust): State<Trust>) -> Json<Vec<EntryView>> {
    Json(trust.inner.deny.list().await.into_iter().map(EntryView::from).collect())
}

async fn allow(State(trust): State<Trust>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let known = match id.parse() {
        Ok(number) => {
            let now = trust.inner.issuer.clock.wall();
            trust.inner.deny.remove(number, now).await.map_err(|error| failed(&error))?
        }
        Err(_) => false,
    };
    if known {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::new(StatusCode::NOT_FOUND, "no such deny entry")
        .detail(format!("there is no deny entry {id}; GET /v1/identity/deny lists what there is"))
        .code(codes::NO_SUCH_DENY_ENTRY))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RefusedView {
    at: String,
    from: String,
    cause: &'static str,
    message: String,
    code: String,
}

async fn refused(State(trust): State<Trust>) -> Json<Vec<RefusedView>> {
    let view = |refused: meshwork_xds::transport::mtls::Refused| RefusedView {
        at: rfc3339_millis(refused.at),
        from: refused.from.to_string(),
        cause: refused.refusal.cause(),
        message: refused.refusal.to_string(),
        code: refused.refusal.code().to_string(),
    };
    Json(trust.inner.connections.refused().into_iter().map(view).collect())
}
