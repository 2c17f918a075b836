//! Join tokens: how a new instance and its control plane prove themselves to each other at first contact.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use meshwork_base::{Code, SpiffeId};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::verify::parse;

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not of the form.
    #[error("this is no join token: it has the form id.secret.pin, as `meshwork token create` prints it")]
    Malformed,
    /// No such token, or a wrong secret. The two are not told apart, so that ids cannot be guessed.
    #[error("the join token is unknown; create a new one with `meshwork token create`")]
    Unknown,
    /// Its time is over.
    #[error("the join token has expired; create a new one, with a longer --ttl if need be")]
    Expired,
    /// It was used as often as it may.
    #[error("the join token was used as often as it may be; create a new one, with more --uses if need be")]
    UsedUp,
    /// No randomness.
    #[error("the system gave no random bytes for a join token")]
    NoRandomness,
}

impl TokenError {
    /// A stable name for logs, metrics and `explain`.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Malformed => "token_malformed",
            Self::Unknown => "token_unknown",
            Self::Expired => "token_expired",
            Self::UsedUp => "token_used_up",
            Self::NoRandomness => "no_randomness",
        }
    }

    /// Its page.
    #[must_use]
    pub const fn code(self) -> Code {
        Code::new(match self {
            Self::Malformed => 6040,
            Self::Unknown => 6041,
            Self::Expired => 6042,
            Self::UsedUp => 6043,
            Self::NoRandomness => 6044,
        })
    }
}

/// SHA-256 of a root's public key (its SubjectPublicKeyInfo, as in RFC 7469).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a certificate.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] when it does not parse.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, Refusal> {
        Ok(Self(sha256(parse(certificate)?.public_key().raw)))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// `id.secret.pin`: what a new instance is given. Only `Display` shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: [u8; 9],
    secret: [u8; 32],
    pin: Pin,
}

impl JoinToken {
    /// Makes a token that lets `uses` instances join as `spiffe_id` within `ttl`. The record is what the control
    /// plane keeps; the token is shown once and cannot be made again from it.
    ///
    /// # Errors
    /// [`TokenError::NoRandomness`].
    pub fn create(
        spiffe_id: SpiffeId,
        uses: u32,
        ttl: Duration,
        pin: Pin,
        now: Duration,
    ) -> Result<(Self, TokenRecord), TokenError> {
        let (mut id, mut secret) = ([0; 9], [0; 32]);
        aws_lc_rs::rand::fill(&mut id).map_err(|_| TokenError::NoRandomness)?;
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| TokenError::NoRandomness)?;
        let token = Self { id, secret, pin };
        let record = TokenRecord {
            id: token.id(),
            secret_hash: sha256(&secret),
            spiffe_id,
            uses_left: uses,
            expires: now + ttl,
        };
        Ok((token, record))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        Ok(Self { id: decode(id)?, secret: decode(secret)?, pin: Pin(decode(pin)?) })
    }

    /// Under what the control plane keeps its record.
    #[must_use]
    pub fn id(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.id)
    }

    /// Which root the server must prove before the token is sent.
    #[must_use]
    pub const fn pin(&self) -> Pin {
        self.pin
    }
}

fn decode<const N: usize>(text: &str) -> Result<[u8; N], TokenError> {
    URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(TokenError::Malformed)
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id(), URL_SAFE_NO_PAD.encode(self.secret), self.pin)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.….{}", self.id(), self.pin)
    }
}

/// What the control plane keeps of a token: never the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// The token's id.
    pub id: String,
    /// SHA-256 of its secret; 256 random bits need no slower hash.
    secret_hash: [u8; 32],
    /// Who joins with it.
    pub spiffe_id: SpiffeId,
    /// How many instances may still join.
    pub uses_left: u32,
    /// Until when, since the Unix epoch.
    pub expires: Duration,
}

impl TokenRecord {
    /// Takes one use and says who joins. The caller writes the record back with compare-and-set, so that two
    /// instances cannot take the last use both.
    ///
    /// # Errors
    /// [`TokenError`]; nothing is taken then. Whether the secret is right is decided first and in constant time.
    pub fn redeem(&mut self, token: &JoinToken, now: Duration) -> Result<SpiffeId, TokenError> {
        let secret = verify_slices_are_equal(&sha256(&token.secret), &self.secret_hash);
        if secret.is_err() || token.id() != self.id {
            return Err(TokenError::Unknown);
        }
        if now >= self.expires {
            return Err(TokenError::Expired);
        }
        self.uses_left = self.uses_left.checked_sub(1).ok_or(TokenError::UsedUp)?;
        Ok(self.spiffe_id.clone())
    }

    /// Whether it can be forgotten.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        self.uses_left == 0 || now >= self.expires
    }
}
