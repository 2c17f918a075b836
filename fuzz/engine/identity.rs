//! What a newcomer shows.

use meshwork_identity::JoinToken;

/// A token that is read is written as it was.
pub(crate) fn join_token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(token) = JoinToken::parse(text) else { return };
    assert_eq!(token.to_string(), text.trim());
    assert!(text.trim().starts_with(&token.id()));
}
