//! What a rule does to a request besides sending it on. Filters are data; the proxy applies what these pure functions
//! say, in the order of the rule's slice.

use std::fmt;

use crate::request::{RequestView, Scheme};

/// One filter of a rule or of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Edits of the request's fields.
    RequestHeaders(HeaderEdits),
    /// Edits of the response's fields.
    ResponseHeaders(HeaderEdits),
    /// Answers with another place.
    Redirect(Redirect),
    /// Changes what the backend sees as host and path.
    Rewrite(Rewrite),
}

/// Edits of fields. They are applied in the order removals, replacements, additions, as Envoy does, so that a field can
/// be removed and added anew. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Fields to drop.
    pub remove: Box<[Box<str>]>,
    /// Fields of which one value remains.
    pub set: Box<[(Box<str>, Box<str>)]>,
    /// Fields that get one more value.
    pub add: Box<[(Box<str>, Box<str>)]>,
}

/// One edit of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderEdit<'f> {
    /// Drop all values.
    Remove(&'f str),
    /// Make this the only value.
    Set(&'f str, &'f str),
    /// Append this value as a field line of its own.
    Add(&'f str, &'f str),
}

impl HeaderEdits {
    /// The edits in the order in which they apply.
    pub fn iter(&self) -> impl Iterator<Item = HeaderEdit<'_>> {
        let remove = self.remove.iter().map(|n| HeaderEdit::Remove(n));
        let set = self.set.iter().map(|(n, v)| HeaderEdit::Set(n, v));
        let add = self.add.iter().map(|(n, v)| HeaderEdit::Add(n, v));
        remove.chain(set).chain(add)
    }
}

/// In words, as explanations tell them.
impl fmt::Display for HeaderEdits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, edit) in self.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "; " })?;
            match edit {
                HeaderEdit::Remove(name) => write!(f, "remove {name}")?,
                HeaderEdit::Set(name, value) => write!(f, "set {name}: {value}")?,
                HeaderEdit::Add(name, value) => write!(f, "add {name}: {value}")?,
            }
        }
        Ok(())
    }
}

/// A change of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    /// Replaces the whole path.
    Full(Box<str>),
    /// Replaces the prefix that matched.
    Prefix(Box<str>),
}

impl PathEdit {
    /// The new path. `matched` is the prefix of the match that chose the rule, as [`crate::Matched::prefix`] gives it.
    ///
    /// A final `/` of either prefix makes no difference to what follows it: `/foo` → `/xyz/` turns `/foo/bar` into
    /// `/xyz/bar`. An empty replacement of everything leaves `/`.
    #[must_use]
    pub fn apply(&self, path: &str, matched: Option<&str>) -> String {
        match self {
            Self::Full(full) => full.to_string(),
            Self::Prefix(replacement) => {
                let matched = matched.unwrap_or_default().trim_end_matches('/');
                let rest = path.strip_prefix(matched).unwrap_or(path);
                if rest.is_empty() {
                    return if replacement.is_empty() { "/".to_owned() } else { replacement.to_string() };
                }
                let mut new = String::with_capacity(replacement.len() + rest.len());
                new.push_str(replacement.trim_end_matches('/'));
                new.push_str(rest);
                new
            }
        }
    }
}

/// Answers with a redirect (Gateway API, `HTTPRequestRedirectFilter`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; absent: the request's.
    pub scheme: Option<Scheme>,
    /// Absent: the request's.
    pub hostname: Option<Box<str>>,
    /// Absent: the request's.
    pub path: Option<PathEdit>,
    /// Absent: the well-known port of a given scheme, else the listener's.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

impl Redirect {
    /// The value of `Location`. `listener_port` is the port of the listener as its Gateway says; `matched` as for
    /// [`PathEdit::apply`]. The query is kept.
    #[must_use]
    pub fn location(&self, request: &impl RequestView, listener_port: u16, matched: Option<&str>) -> String {
        let scheme = self.scheme.unwrap_or_else(|| request.scheme());
        let port = self.port.unwrap_or_else(|| self.scheme.map_or(listener_port, Scheme::port));
        let host = self.hostname.as_deref().unwrap_or_else(|| request.host());
        let mut location = format!("{}://{host}", scheme.as_str());
        if port != scheme.port() {
            location.push(':');
            location.push_str(&port.to_string());
        }
        match &self.path {
            Some(edit) => location.push_str(&edit.apply(request.path(), matched)),
            None => location.push_str(request.path()),
        }
        if let Some(query) = request.query() {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

/// Changes what the backend sees (Gateway API, `HTTPURLRewriteFilter`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The new host; absent: unchanged.
    pub hostname: Option<Box<str>>,
    /// The new path; absent: unchanged.
    pub path: Option<PathEdit>,
}

#[cfg(test)]
mod tests;
