//! Join tokens, kept hashed. A use is taken with compare-and-set, so that two instances cannot take the last one both.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, SpiffeId};
use meshwork_identity::{JoinToken, Pin, TokenError, TokenRecord};
use meshwork_store::{Condition, Entry, Op, Outcome, Store, Txn};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::TrustError;

const TOKENS: &str = "tokens/";
/// Which signing requests a token has admitted: an answer that was lost on the way may be asked for again.
const ADMITTED: &str = "admitted/";
/// How long a token that is over is remembered, so that its holder is told why it is refused.
const REMEMBERED: Duration = Duration::from_hours(24);

/// What is kept of a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kept {
    pub(crate) record: TokenRecord,
    /// How often it may be used altogether.
    pub(crate) uses: u32,
    /// When it was made, since the Unix epoch.
    pub(crate) created: Duration,
}

/// Why a token admits nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedeemError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Tokens {
    store: Store,
    clock: Arc<dyn Clock>,
}

fn key(id: &str) -> String {
    format!("{TOKENS}{id}")
}

fn admitted(id: &str, csr: &[u8]) -> String {
    let hash: String = Sha256::digest(csr).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{ADMITTED}{id}/{hash}")
}

fn read(entry: &Entry) -> Result<Kept, TrustError> {
    serde_json::from_slice(&entry.value).map_err(|error| TrustError::Record {
        what: format!("join token {}", entry.key.trim_start_matches(TOKENS)),
        why: error.to_string(),
    })
}

fn written(kept: &Kept) -> Vec<u8> {
    serde_json::to_vec(kept).expect("names, numbers and bytes are JSON")
}

impl Tokens {
    pub(crate) fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }

    /// Makes a token; it is durable when this returns.
    pub(crate) async fn create(
        &self,
        id: SpiffeId,
        uses: u32,
        ttl: Duration,
        pin: Pin,
    ) -> Result<(JoinToken, Kept), RedeemError> {
        let created = self.clock.wall();
        let (token, record) = JoinToken::create(id, uses, ttl, pin, created)?;
        let kept = Kept { record, uses, created };
        let key = key(&kept.record.id);
        let txn = Txn::new().when(&key, Condition::Absent).then(Op::put(&key, written(&kept)));
        match self.store.commit(txn).await.map_err(TrustError::from)? {
            Outcome::Done(_) => Ok((token, kept)),
            // Nine random bytes came twice: that is no randomness.
            Outcome::Conflict { .. } => Err(TokenError::NoRandomness.into()),
        }
    }

    /// All that are remembered.
    pub(crate) async fn list(&self) -> Result<Vec<Kept>, TrustError> {
        self.store.list(TOKENS).await?.entries.iter().map(read).collect()
    }

    /// Takes a token back; says whether there was one.
    pub(crate) async fn remove(&self, id: &str) -> Result<bool, TrustError> {
        let key = key(id);
        let txn = Txn::new().when(&key, Condition::Present).then(Op::delete(&key));
        let txn = txn.then(Op::delete_prefix(&format!("{ADMITTED}{id}/")));
        Ok(self.store.commit(txn).await?.done().is_some())
    }

    /// Who would join with this token and request; takes nothing.
    pub(crate) async fn holder(&self, token: &JoinToken, csr: &[u8]) -> Result<SpiffeId, RedeemError> {
        let (_, kept, _) = self.judge(token, csr).await?;
        Ok(kept.record.spiffe_id)
    }

    /// Takes one use. The same request again takes none: its first answer was lost on the way.
    pub(crate) async fn redeem(&self, token: &JoinToken, csr: &[u8]) -> Result<SpiffeId, RedeemError> {
        loop {
            let (entry, kept, again) = self.judge(token, csr).await?;
            if again {
                return Ok(kept.record.spiffe_id);
            }
            let txn = Txn::new()
                .when(&entry.key, Condition::Modified(entry.modified))
                .then(Op::put(&entry.key, written(&kept)))
                .then(Op::put(&admitted(&kept.record.id, csr), Vec::new()));
            if self.store.commit(txn).await.map_err(TrustError::from)?.done().is_some() {
                return Ok(kept.record.spiffe_id);
            }
            // Another instance was faster: whether there is a use left is to be looked at again.
        }
    }

    /// The token's entry, its record with one use taken, and whether this request has been admitted before.
    async fn judge(&self, token: &JoinToken, csr: &[u8]) -> Result<(Entry, Kept, bool), RedeemError> {
        let id = token.id();
        let found = self.store.get(&key(&id)).await.map_err(TrustError::from)?.entry;
        let entry = found.ok_or(TokenError::Unknown)?;
        let mut kept = read(&entry)?;
        let again = self.store.get(&admitted(&id, csr)).await.map_err(TrustError::from)?.entry.is_some();
        match kept.record.redeem(token, self.clock.wall()) {
            Err(TokenError::UsedUp) if again => {}
            judged => drop(judged?),
        }
        Ok((entry, kept, again))
    }

    /// Forgets tokens whose time has been over for a while.
    pub(crate) async fn sweep(&self) -> Result<(), TrustError> {
        let now = self.clock.wall();
        for kept in self.list().await? {
            if now >= kept.record.expires + REMEMBERED {
                self.remove(&kept.record.id).await?;
            }
        }
        Ok(())
    }
}
