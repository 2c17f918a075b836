//! The names of kinds as people type them.

use meshwork_resources::ObjectKind;

/// Plural and short forms, as `kubectl` has them and as people say them.
const fn forms(kind: ObjectKind) -> &'static [&'static str] {
    match kind {
        ObjectKind::Namespace => &["namespaces", "ns"],
        ObjectKind::Service => &["services", "svc"],
        ObjectKind::EndpointSlice => &["endpointslices", "eps"],
        ObjectKind::Secret => &["secrets"],
        ObjectKind::ConfigMap => &["configmaps", "cm"],
        ObjectKind::GatewayClass => &["gatewayclasses", "gc"],
        ObjectKind::Gateway => &["gateways", "gtw", "gw"],
        ObjectKind::HTTPRoute => &["httproutes", "route", "routes", "hr"],
        ObjectKind::TCPRoute => &["tcproutes"],
        ObjectKind::TLSRoute => &["tlsroutes"],
        ObjectKind::ReferenceGrant => &["referencegrants", "refgrant"],
        ObjectKind::ServiceSubset => &["servicesubsets", "subset", "subsets"],
        ObjectKind::TrafficPolicy => &["trafficpolicies", "tp"],
        ObjectKind::AuthorizationPolicy => &["authorizationpolicies", "ap"],
        ObjectKind::InboundPolicy => &["inboundpolicies", "ip"],
        ObjectKind::ListenerPolicy => &["listenerpolicies", "lp"],
    }
}

/// Reads the name of a kind in singular, plural or short form, in upper or lower case.
#[must_use]
pub fn parse_kind(text: &str) -> Option<ObjectKind> {
    let text = text.to_ascii_lowercase();
    let is = |kind: &ObjectKind| {
        kind.as_str().eq_ignore_ascii_case(&text) || forms(*kind).contains(&text.as_str())
    };
    ObjectKind::ALL.iter().copied().find(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_means_one_kind() {
        let mut seen = std::collections::BTreeSet::new();
        for kind in ObjectKind::ALL {
            let all = forms(*kind).iter().map(|form| (*form).to_owned());
            for form in all.chain([kind.as_str().to_ascii_lowercase()]) {
                assert_eq!(parse_kind(&form.to_uppercase()), Some(*kind));
                assert!(seen.insert(form.clone()), "{form} is said twice");
            }
        }
        assert_eq!(parse_kind("GateWay"), Some(ObjectKind::Gateway));
        assert_eq!(parse_kind("gatewaysx"), None);
    }
}
