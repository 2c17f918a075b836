//! The shop's resources, and a certificate for development, written where people edit them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rust_embed::RustEmbed;

use super::UpError;
use crate::private;

/// The shop's resources, compiled in.
#[derive(RustEmbed)]
#[folder = "../examples/commerce/mesh"]
struct Mesh;

/// What the reviews service is: a script and what it reads, compiled in.
const REVIEWS: [(&str, &str); 2] = [
    ("reviews/server.py", include_str!("../../../examples/commerce/reviews/server.py")),
    ("catalogue.json", include_str!("../../../examples/commerce/catalogue.json")),
];

/// Writes the shop's resources to `D/resources` at the first start; later they are the user's, as edited.
///
/// # Errors
/// [`UpError`].
pub(crate) fn write(data_dir: &Path, base: IpAddr, with_shop: bool) -> Result<PathBuf, UpError> {
    let folder = data_dir.join("resources");
    if folder.exists() {
        return Ok(folder);
    }
    // Whole or not at all: half of the shop's resources would stay so for ever.
    let staged = data_dir.join("resources.new");
    if staged.exists() {
        std::fs::remove_dir_all(&staged).map_err(UpError::io(&staged))?;
    }
    private::folder(&staged)?;
    if with_shop {
        for name in Mesh::iter() {
            let file = Mesh::get(&name).expect("its name was listed");
            private::write(&staged.join(&*name), &String::from_utf8_lossy(&file.data))?;
        }
        private::write(&staged.join("certificate.yaml"), &certificate(base)?)?;
    }
    std::fs::rename(&staged, &folder).map_err(UpError::io(&folder))?;
    Ok(folder)
}

/// A self-signed certificate with its key, as a Secret.
fn certificate(base: IpAddr) -> Result<String, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "shop.localhost".to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Meshwork development");
    params.subject_alt_names.push(SanType::IpAddress(base));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(&key)?;
    let block = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    Ok(format!(
        "# For this machine alone: made at the first start, signed by nobody. Put a real one in its place.\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: shop-certificate}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        block(certificate.pem()),
        block(key.serialize_pem())
    ))
}

/// Writes the script of the reviews service, of this version, and gives its path.
///
/// # Errors
/// The disk.
pub(crate) fn reviews_script(data_dir: &Path) -> Result<PathBuf, UpError> {
    let folder = data_dir.join("shop");
    for (name, text) in REVIEWS {
        let path = folder.join(name);
        private::folder(path.parent().expect("it lies in the folder"))?;
        private::write(&path, text)?;
    }
    Ok(folder.join("reviews/server.py"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shops_resources_are_good_and_written_once() {
        let data = tempfile::tempdir().unwrap();
        let folder = write(data.path(), "127.0.0.1".parse().unwrap(), true).unwrap();
        let checked = meshwork_control_plane::check(std::slice::from_ref(&folder)).unwrap();
        // Services that are registered are not in the folder.
        let wrong = |d: &&meshwork_resources::Diagnostic| {
            d.code.to_string() != "MW2016" && d.code.to_string() != "MW2004"
        };
        let errors: Vec<_> = checked.diagnostics.iter().filter(wrong).collect();
        assert!(errors.is_empty(), "{errors:?}");
        std::fs::write(folder.join("routes.yaml"), "# mine\n").unwrap();
        write(data.path(), "127.0.0.1".parse().unwrap(), true).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("routes.yaml")).unwrap(), "# mine\n");
        let script = reviews_script(data.path()).unwrap();
        assert!(script.parent().unwrap().parent().unwrap().join("catalogue.json").exists());
    }
}
