//! What a port offers by TLS, as `sslscan` finds it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

/// What nobody has broken: forward secrecy and authenticated encryption.
const CIPHERS: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];
/// X25519, P-256, P-384. The scanner's library does not know the hybrid one, which other tests ask for.
const GROUPS: [&str; 3] = ["0x001d", "0x0017", "0x0018"];

/// Scans a port and sees that it offers these versions and nothing weak. False: there is no scanner.
pub fn offers_only(versions: &[&str], address: SocketAddr, server_name: &str) -> bool {
    let Some(sslscan) = meshwork_testkit::tool("sslscan") else { return false };
    let mut command = Command::new(sslscan);
    command.args(["--no-colour", "--xml=-", "--connect-timeout=10"]);
    command.arg(format!("--sni-name={server_name}")).arg(address.to_string());
    let output = command.output().expect("the scanner runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("</ssltest>"), "{address}: {output:?}");
    let of = |element| elements(&said, element);

    let enabled = of("protocol").into_iter().filter(|line| attribute(line, "enabled") == Some("1"));
    let enabled: Vec<_> = enabled.map(|line| attribute(line, "version").unwrap()).collect();
    assert_eq!(enabled, versions, "{address}: {said}");
    let renegotiation = of("renegotiation");
    assert!(!renegotiation.is_empty(), "{said}");
    assert!(renegotiation.iter().all(|line| attribute(line, "supported") == Some("0")), "{said}");
    assert!(of("compression").iter().all(|line| attribute(line, "supported") == Some("0")), "{said}");
    assert!(of("heartbleed").iter().all(|line| attribute(line, "vulnerable") == Some("0")), "{said}");

    let ciphers = of("cipher");
    let with: BTreeSet<_> = ciphers.iter().filter_map(|line| attribute(line, "sslversion")).collect();
    let wanted: BTreeSet<_> = versions.iter().map(|version| format!("TLSv{version}")).collect();
    assert!(with.iter().copied().eq(wanted.iter().map(String::as_str)), "{address}: {said}");
    for line in ciphers {
        let cipher = attribute(line, "cipher").unwrap();
        assert!(CIPHERS.contains(&cipher), "{address}: {cipher} is weak: {said}");
    }
    let groups: BTreeSet<_> = of("group").iter().filter_map(|line| attribute(line, "id")).collect();
    assert_eq!(groups, BTreeSet::from(GROUPS), "{address}: {said}");
    true
}

/// The tags of elements of this name.
fn elements<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
    let begin = format!("<{name} ");
    text.lines().map(str::trim).filter(|line| line.starts_with(&begin)).collect()
}

fn attribute<'t>(tag: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    Some(rest.split_once('"')?.0)
}
