//! Reading what Consul's clients send: bodies whose keys come in any case (`ServiceID`, `service_id`, `serviceid`),
//! with any media type, and queries. What is not understood and says something is an error, not ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::RegistryError;

fn invalid(what: impl Into<String>) -> RegistryError {
    RegistryError::invalid(what)
}

/// The fields of an object, taken out one by one.
#[derive(Debug)]
pub(crate) struct Fields {
    what: String,
    /// By name without case and separators; the value with the name as written.
    left: BTreeMap<String, (String, Value)>,
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Whether a value says nothing: clients send such for what they do not use.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    }
}

impl Fields {
    /// The fields of a body; none of an empty one.
    pub(crate) fn body(what: &str, body: &[u8]) -> Result<Self, RegistryError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self { what: what.to_owned(), left: BTreeMap::new() });
        }
        let value = serde_json::from_slice(body).map_err(|e| invalid(format!("{what} is no JSON: {e}")))?;
        Self::of(what, value)
    }

    /// The fields of a value.
    pub(crate) fn of(what: &str, value: Value) -> Result<Self, RegistryError> {
        let Value::Object(fields) = value else {
            return Err(invalid(format!("{what} must be a JSON object")));
        };
        let mut left = BTreeMap::new();
        for (name, value) in fields {
            if let Some((other, _)) = left.insert(plain(&name), (name.clone(), value)) {
                return Err(invalid(format!("{what} has the field {name:?} twice, also as {other:?}")));
            }
        }
        Ok(Self { what: what.to_owned(), left })
    }

    fn wrong(&self, name: &str, right: &str, value: &Value) -> RegistryError {
        invalid(format!("{}: {name} must be {right}, not {value}", self.what))
    }

    /// Takes a value; null counts as absent.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.left.remove(&plain(name)).map(|(_, value)| value).filter(|value| !value.is_null())
    }

    /// Takes a text; an empty one counts as absent.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, RegistryError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(other) => Err(self.wrong(name, "a text", &other)),
        }
    }

    /// Takes a whole number of a type.
    pub(crate) fn number<N: TryFrom<u64>>(&mut self, name: &str) -> Result<Option<N>, RegistryError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| N::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.wrong(name, "a whole number in its range", &value))
    }

    /// Takes a truth value.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, RegistryError> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(name, "true or false", &other)),
        }
    }

    /// Takes a duration: Go's notation, or nanoseconds as a number, as Go's clients send.
    pub(crate) fn duration(&mut self, name: &str) -> Result<Option<Duration>, RegistryError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => match go_duration(&text) {
                Some(duration) => Ok(Some(duration)),
                None => Err(self.wrong(name, "a duration such as 10s or 1m30s", &Value::String(text))),
            },
            Some(Value::Number(number)) if number.is_u64() => {
                Ok(number.as_u64().map(Duration::from_nanos).filter(|duration| !duration.is_zero()))
            }
            Some(other) => Err(self.wrong(name, "a duration such as 10s or 1m30s", &other)),
        }
    }

    /// Takes a list; absent is empty.
    pub(crate) fn list(&mut self, name: &str) -> Result<Vec<Value>, RegistryError> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(self.wrong(name, "a list", &other)),
        }
    }

    /// Takes a list of texts.
    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>, RegistryError> {
        let text = |item: Value| match item {
            Value::String(text) => Ok(text),
            other => Err(invalid(format!("{name} must hold texts, not {other}"))),
        };
        self.list(name)?.into_iter().map(text).collect()
    }

    /// Takes an object whose keys are the user's.
    pub(crate) fn map(&mut self, name: &str) -> Result<Map<String, Value>, RegistryError> {
        match self.value(name) {
            None => Ok(Map::new()),
            Some(Value::Object(fields)) => Ok(fields),
            Some(other) => Err(self.wrong(name, "an object", &other)),
        }
    }

    /// Takes an object of texts whose keys are the user's.
    pub(crate) fn text_map(&mut self, name: &str) -> Result<BTreeMap<String, String>, RegistryError> {
        let entry = |(key, value): (String, Value)| match value {
            Value::String(text) => Ok((key, text)),
            other => Err(invalid(format!("{name}: the value of {key:?} must be a text, not {other}"))),
        };
        self.map(name)?.into_iter().map(entry).collect()
    }

    /// Takes what has to be the default, for features that are not here.
    pub(crate) fn only(&mut self, name: &str, allowed: &[&str]) -> Result<(), RegistryError> {
        match self.text(name)? {
            Some(text) if !allowed.contains(&text.as_str()) => {
                Err(invalid(format!("{}: {name} {text:?} is not supported; leave it out", self.what)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what was not taken and says something.
    pub(crate) fn finish(self) -> Result<(), RegistryError> {
        match self.left.values().find(|(_, value)| !says_nothing(value)) {
            None => Ok(()),
            Some((name, _)) => Err(invalid(format!(
                "{} has the field {name:?}, which this registry does not support; leave it out",
                self.what
            ))),
        }
    }
}

/// Reads Go's notation of a duration: decimal numbers, each with its unit.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

/// A query, its parameters taken out one by one.
#[derive(Debug, Default)]
pub(crate) struct Query {
    left: Vec<(String, String)>,
}

impl Query {
    /// Reads the part behind `?`.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, RegistryError> {
        let mut left = Vec::new();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            left.push((percent_decode(&name.replace('+', " "))?, percent_decode(&value.replace('+', " "))?));
        }
        Ok(Self { left })
    }

    /// Takes a parameter.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let at = self.left.iter().position(|(key, _)| key == name)?;
        Some(self.left.remove(at).1)
    }

    /// Takes all parameters of a name.
    pub(crate) fn texts(&mut self, name: &str) -> Vec<String> {
        std::iter::from_fn(|| self.text(name)).collect()
    }

    /// Takes a switch: there without a value, or with one that does not say no.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.text(name).is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// Takes a whole number.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>, RegistryError> {
        let Some(text) = self.text(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| invalid(format!("{name} must be a whole number, not {text:?}")))
    }

    /// Takes a duration in Go's notation.
    pub(crate) fn duration(&mut self, name: &str) -> Result<Option<Duration>, RegistryError> {
        let Some(text) = self.text(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let wrong = || invalid(format!("{name} must be a duration such as 10s or 5m, not {text:?}"));
        go_duration(&text).map(Some).ok_or_else(wrong)
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> Result<(), RegistryError> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => {
                Err(invalid(format!("the query parameter {name:?} is not supported here; leave it out")))
            }
        }
    }
}

/// Decodes `%XX`.
pub(crate) fn percent_decode(text: &str) -> Result<String, RegistryError> {
    let wrong = || invalid(format!("{text:?} has a broken percent-encoding or is no UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (hex, after) = rest.split_at_checked(2).ok_or_else(wrong)?;
            let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
            bytes.push(hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).ok_or_else(wrong)?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_match_in_any_case_and_leftovers_that_say_something_are_refused() {
        let body = br#"{"service_id":"a","Deregister-Critical-Service-After":"90s","Connect":{"Native":false},"Kind":""}"#;
        let mut fields = Fields::body("the check", body).unwrap();
        assert_eq!(fields.text("ServiceID").unwrap().as_deref(), Some("a"));
        let after = fields.duration("DeregisterCriticalServiceAfter").unwrap();
        assert_eq!(after, Some(Duration::from_secs(90)));
        fields.finish().unwrap();
        let error = Fields::of("x", json!({"Kind": "connect-proxy"})).unwrap().finish().unwrap_err();
        assert!(error.to_string().contains("\"Kind\""), "{error}");
        assert!(Fields::of("x", json!({"ID": 1, "id": 2})).is_err());
        assert!(Fields::of("x", json!({"Port": 70000})).unwrap().number::<u16>("port").is_err());
    }

    #[test]
    fn durations_are_those_of_go() {
        let ms = |text| go_duration(text).map(|d| d.as_millis());
        assert_eq!(
            ["10s", "1m30s", "100ms", "1.5h", "0", "0s"].map(ms),
            [Some(10_000), Some(90_000), Some(100), Some(5_400_000), Some(0), Some(0)]
        );
        for bad in ["", "10", "s", "1x", "-1s", "1s2", "..s"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn queries_are_taken_apart_and_the_rest_is_refused() {
        let mut query = Query::parse(Some("passing&tag=a%20b&tag=c+d&index=7&pretty=false")).unwrap();
        assert!(query.flag("passing") && !query.flag("pretty") && !query.flag("stale"));
        assert_eq!(query.texts("tag"), ["a b", "c d"]);
        assert!(Query { left: query.left.clone() }.finish().is_err());
        assert_eq!(query.number("index").unwrap(), Some(7));
        query.finish().unwrap();
        assert!(Query::parse(Some("a=%f")).is_err() && Query::parse(Some("a=%+1")).is_err());
    }
}
