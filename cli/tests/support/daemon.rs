//! A server that nobody here wrote, with a configuration of the test's.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::until;

/// A running server; killed and reaped when dropped.
pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
    directory: TempDir,
}

/// A port that nobody has at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Daemon {
    /// nginx with this inside of its `http` block, where `{port}` stands for the port that it is to listen on and
    /// `{dir}` for a folder of its own. `None`: there is no nginx.
    pub fn nginx(http: &str, files: &[(&str, &str)]) -> Option<Self> {
        let nginx = meshwork_testkit::tool("nginx")?;
        let configuration = format!(
            "daemon off; master_process off; pid {{dir}}/pid; error_log {{dir}}/error.log;\n\
             events {{}}\nhttp {{ access_log off; client_body_temp_path {{dir}}/a; proxy_temp_path {{dir}}/b;\n\
             fastcgi_temp_path {{dir}}/c; uwsgi_temp_path {{dir}}/d; scgi_temp_path {{dir}}/e;\n{http}\n}}\n"
        );
        Some(Self::start(&nginx, &["-c"], &configuration, files))
    }

    /// HAProxy with these sections; placeholders as above. `None`: there is no HAProxy.
    pub fn haproxy(sections: &str) -> Option<Self> {
        let haproxy = meshwork_testkit::tool("haproxy")?;
        let configuration = format!(
            "defaults\n  mode http\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n{sections}\n"
        );
        Some(Self::start(&haproxy, &["-db", "-f"], &configuration, &[]))
    }

    fn start(program: &Path, arguments: &[&str], configuration: &str, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let folder = directory.path().to_str().unwrap();
        let configuration = configuration.replace("{port}", &port.to_string()).replace("{dir}", folder);
        let file = directory.path().join("configuration");
        std::fs::write(&file, configuration).unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let output = std::fs::File::create(directory.path().join("output")).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("the server starts");
        let mut daemon = Self { child, address: ([127, 0, 0, 1], port).into(), directory };
        until("the server listens", || {
            if let Some(status) = daemon.child.try_wait().expect("a child can be asked") {
                let said =
                    std::fs::read_to_string(daemon.directory.path().join("output")).unwrap_or_default();
                panic!("{} ended with {status}: {said}", program.display());
            }
            TcpStream::connect(daemon.address).ok()
        });
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
