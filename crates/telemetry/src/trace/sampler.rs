//! Which traces are recorded.

use super::context::TraceContext;
use crate::record::TraceId;

/// OpenTelemetry's samplers, by the names of `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Whoever called has decided; only the first of a trace decides itself.
    parent_based: bool,
    /// Of 2^63 trace ids so many are recorded.
    threshold: u64,
}

impl Default for Sampler {
    /// OpenTelemetry's: `parentbased_always_on`.
    fn default() -> Self {
        Self { parent_based: true, threshold: 1 << 63 }
    }
}

/// A sampler that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
    /// Its name.
    #[error(
        "OTEL_TRACES_SAMPLER={0} is not known; write always_on, always_off or traceidratio, or one of them behind parentbased_"
    )]
    Name(String),
    /// Its argument.
    #[error("OTEL_TRACES_SAMPLER_ARG={0} is no ratio; write a number from 0 to 1")]
    Argument(String),
}

impl Sampler {
    /// The sampler of a name and, where it takes one, an argument.
    ///
    /// # Errors
    /// [`SamplerError`].
    pub fn new(name: &str, argument: Option<&str>) -> Result<Self, SamplerError> {
        let (parent_based, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let threshold = match root {
            "always_on" => 1 << 63,
            "always_off" => 0,
            "traceidratio" => threshold(argument.unwrap_or("1"))?,
            _ => return Err(SamplerError::Name(name.to_owned())),
        };
        Ok(Self { parent_based, threshold })
    }

    /// Whether a trace is recorded, which a caller is part of already or nobody.
    #[must_use]
    pub fn samples(&self, trace: &TraceId, caller: Option<&TraceContext>) -> bool {
        if let Some(caller) = caller.filter(|_| self.parent_based) {
            return caller.sampled;
        }
        // As OpenTelemetry's SDKs do it, so that all who sample by the same ratio record the same traces.
        let low = trace.as_bytes()[8..].iter().fold(0_u64, |low, byte| low << 8 | u64::from(*byte));
        low >> 1 < self.threshold
    }
}

fn threshold(ratio: &str) -> Result<u64, SamplerError> {
    let number = ratio.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    let number = number.ok_or_else(|| SamplerError::Argument(ratio.to_owned()))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 1 times 2^63 is a u64, and less than one trace in 2^63 is no loss"
    )]
    Ok((number * 9_223_372_036_854_775_808.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_base::SeededRng;

    const OWN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn samplers_are_opentelemetrys() {
        let yes = TraceContext::parse(OWN.as_bytes()).unwrap();
        let no = TraceContext { sampled: false, ..yes };
        let of = |name: &str, argument| Sampler::new(name, argument).unwrap();
        let asks = |sampler: Sampler, caller: Option<&TraceContext>| sampler.samples(&yes.trace_id, caller);
        assert_eq!(of("parentbased_always_on", None), Sampler::default());
        assert!(asks(Sampler::default(), None) && asks(Sampler::default(), Some(&yes)));
        assert!(!asks(Sampler::default(), Some(&no)));
        assert!(asks(of("always_on", None), Some(&no)) && !asks(of("always_off", None), Some(&yes)));
        assert!(asks(of("parentbased_always_off", None), Some(&yes)));
        assert!(!asks(of("parentbased_always_off", None), None));
        // The lower half of the id is 0.63987 of what it can be.
        assert!(
            !asks(of("traceidratio", Some("0.63")), None) && asks(of("traceidratio", Some("0.64")), None)
        );
        assert!(asks(of("parentbased_traceidratio", Some("0")), Some(&yes)));
    }

    #[test]
    fn a_ratio_is_about_that_many_of_all_traces() {
        let sampler = Sampler::new("traceidratio", Some("0.25")).unwrap();
        let mut rng = SeededRng::new(1);
        let taken =
            (0..4000).filter(|_| sampler.samples(&TraceContext::begin(&mut rng).trace_id, None)).count();
        assert!((900..1100).contains(&taken), "{taken} of 4000");
    }

    #[test]
    fn what_is_no_sampler_says_what_would_be_one() {
        assert!(Sampler::new("sometimes", None).unwrap_err().to_string().contains("parentbased_"));
        for ratio in ["2", "-0.1", "NaN", "half", ""] {
            let error = Sampler::new("traceidratio", Some(ratio)).unwrap_err();
            assert_eq!(error, SamplerError::Argument(ratio.to_owned()));
        }
    }
}
