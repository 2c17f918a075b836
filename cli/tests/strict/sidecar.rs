//! The same rows and the same standard on the inbound side of a sidecar, plain and by mTLS.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;

use meshwork_base::{Clock as _, SystemClock};
use meshwork_identity::{Loaded, SvidStore};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tempfile::TempDir;

use crate::raw::{self, Wire};
use crate::recorder::Recorder;
use crate::support::{self, command, sslscan, until};
use crate::{refusals, semantics};

const PERMISSIVE: &str = "
apiVersion: meshwork.dev/v1alpha1
kind: InboundPolicy
metadata: {name: open, namespace: default}
spec:
  targetRefs: [{group: '', kind: Namespace, name: default}]
  mtls: Permissive
";

/// A platform without a shop and one instance of `web`, whose application is a recorder of this process.
struct Mesh {
    sidecar: Child,
    address: Ipv4Addr,
    data: TempDir,
}

impl Mesh {
    fn start(base: Ipv4Addr, address: Ipv4Addr) -> (Self, Recorder) {
        let data = tempfile::tempdir().unwrap();
        let resources = data.path().join("resources");
        std::fs::create_dir(&resources).unwrap();
        std::fs::write(resources.join("open.yaml"), PERMISSIVE).unwrap();
        let up =
            command(&["up", "--detach", "--no-shop", "--base-address", &base.to_string(), "--workers", "1"])
                .arg("--resources")
                .arg(&resources)
                .arg("--data-dir")
                .arg(data.path().join("d"))
                .stdin(Stdio::null())
                .output()
                .unwrap();
        let at = |port| SocketAddr::from((base, port)).to_string();
        let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let started = data.path().join("started");
        let sidecar = command(&[
            "run",
            "--service",
            "web",
            "--address",
            &address.to_string(),
            "--port",
            &port.to_string(),
        ])
        .args([
            "--protocol",
            "http",
            "--control-plane",
            &at(15012),
            "--registry",
            &at(8501),
            "--workers",
            "1",
        ])
        .arg("--data-dir")
        .arg(data.path().join("d"))
        .args(["--", "sh", "-c", "touch \"$0\"; exec sleep 1000"])
        .arg(&started)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(data.path().join("stderr")).unwrap())
        .spawn()
        .unwrap();
        let mesh = Self { sidecar, address, data };
        assert!(up.status.success(), "{up:?}");
        // The sidecar has looked that the port is free, and waits until it takes connections. The process beside it does
        // nothing: the application is the recorder.
        let listener = until("the application may begin", || {
            started.exists().then(|| TcpListener::bind((address, port)).ok()).flatten()
        });
        let recorder = Recorder::listening(listener, semantics::answer);
        until("the sidecar takes plaintext", || {
            let (status, _) = support::get(mesh.inbound(), "/ready")?;
            (status == 200).then_some(())
        });
        (mesh, recorder)
    }

    fn inbound(&self) -> SocketAddr {
        (self.address, 15006).into()
    }

    fn folder(&self) -> PathBuf {
        self.data.path().join("d")
    }

    /// TLS as the instance itself, which is of the mesh; HTTP/1.1 on it.
    fn tls(&self) -> Arc<rustls::ClientConfig> {
        let now = SystemClock::new().wall();
        let Loaded::Valid(svid, _) = SvidStore::new(&self.folder().join("web-1")).load(now).unwrap() else {
            panic!("the sidecar has joined")
        };
        let key = PrivateKeyDer::from_pem_slice(svid.to_pem().as_bytes()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(meshwork_identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Believer))
            .with_client_auth_cert(svid.chain().to_vec(), key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let ended = command(&["down", "--data-dir"]).arg(self.folder()).output();
        drop(self.sidecar.kill());
        drop(self.sidecar.wait());
        drop(ended);
        if std::thread::panicking() {
            let said = std::fs::read_to_string(self.data.path().join("stderr")).unwrap_or_default();
            drop(std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()));
        }
    }
}

fn encrypted(address: SocketAddr, config: &Arc<rustls::ClientConfig>) -> Box<dyn Wire> {
    let name = ServerName::try_from("80.web.default.mesh").unwrap();
    let session = rustls::ClientConnection::new(Arc::clone(config), name).unwrap();
    let tcp: TcpStream = raw::tcp(address);
    Box::new(rustls::StreamOwned::new(session, tcp))
}

/// Believes the server: who that is, other tests ask.
#[derive(Debug)]
struct Believer;

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        meshwork_identity::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A loopback address for the platform and the next one for the instance; no other test has them.
fn addresses() -> (Ipv4Addr, Ipv4Addr) {
    let own = u32::from(support::address());
    let [.., a, b] = (own & 0xffff).to_be_bytes();
    (Ipv4Addr::new(127, 122, a, b), Ipv4Addr::new(127, 123, a, b))
}

#[test]
fn a_sidecar_refuses_each_row_plain_and_by_mtls_and_what_its_application_sends_and_nothing_there_is_weak() {
    let (base, address) = addresses();
    let (mesh, recorder) = Mesh::start(base, address);
    let (inbound, tls) = (mesh.inbound(), mesh.tls());
    semantics::check(&|| raw::connect(inbound));
    semantics::check(&|| encrypted(inbound, &tls));
    recorder.forget();
    refusals::send_all(&|| raw::connect(inbound));
    refusals::send_all(&|| encrypted(inbound, &tls));
    refusals::heads(&|| raw::connect((address, 15001).into()));
    let ports = [(address, 15006), (address, 15008), (base, 15012), (base, 8501)];
    for port in ports.map(SocketAddr::from) {
        sslscan::offers_only(&["1.3"], port, "80.web.default.mesh");
    }
    drop(mesh);
    refusals::check_recorded(recorder, 2);
}
