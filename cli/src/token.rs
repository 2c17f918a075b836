//! Join tokens: asked for at the control plane's API, by people and by what starts on the same machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use meshwork_api::identity::TokenRequest;
use meshwork_api::{ClientError, IdentityClient};
use meshwork_base::ThreadRng;
use meshwork_identity::{Loaded, SvidStore};
use meshwork_xds::join::Waiting;

use crate::private::{self, PrivateError};
use crate::server::ApiArgs;

/// How long a token that is used at once may be used.
const TTL: Duration = Duration::from_mins(5);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenFileError {
    #[error(transparent)]
    Write(#[from] PrivateError),
    #[error("no join token: {0}; make one with `meshwork token create`, and pass it with --token-file")]
    Api(#[from] ClientError),
}

/// The file with the token to join with, for a process that keeps its state in `data_dir`, within the folder
/// `platform`: the one that was given; none while an SVID in force is kept; else one that the
/// API makes for us, where it lets us. While that API is not up it is asked again, for as long as the caller waits.
///
/// # Errors
/// [`TokenFileError`].
pub(crate) async fn token_file(
    api: &ApiArgs,
    (platform, data_dir): (&Path, &Path),
    given: Option<PathBuf>,
    (namespace, workload): (&str, &str),
    wall: Duration,
) -> Result<Option<PathBuf>, TokenFileError> {
    let kept = SvidStore::new(data_dir).load(wall);
    // What is damaged is reported by who reads it next.
    if given.is_some() || !matches!(kept, Ok(Loaded::Missing | Loaded::Expired { .. })) {
        return Ok(given);
    }
    let request = TokenRequest {
        namespace: namespace.to_owned(),
        workload: workload.to_owned(),
        uses: 1,
        ttl_seconds: TTL.as_secs(),
    };
    let mut waiting = Waiting::new();
    let token = loop {
        // Anew each time: where the API is may be written down only once it is up.
        match IdentityClient(api.client_of(platform)?).create_token(&request).await {
            Ok(token) => break token,
            Err(error) if error.is_temporary() => waiting.after(&error, &mut ThreadRng::new()).await,
            Err(error) => return Err(error.into()),
        }
    };
    let path = data_dir.join("token");
    private::write(&path, &format!("{}\n", token.token))?;
    Ok(Some(path))
}
