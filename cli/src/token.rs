//! Where processes get the tokens with which they join the mesh.

use std::path::{Path, PathBuf};

use meshwork_xds::join::Tokens;

use crate::server::ApiArgs;

/// For a process of the platform in this folder: the file that was given, else what the API makes for us, where it lets us.
pub(crate) fn tokens(api: &ApiArgs, platform: &Path, given: Option<PathBuf>, who: (&str, &str)) -> Tokens {
    match given {
        Some(path) => Tokens::File(path),
        None => {
            let (api, platform) = (api.clone(), platform.to_owned());
            Tokens::made(who, move || api.client_of(&platform))
        }
    }
}
