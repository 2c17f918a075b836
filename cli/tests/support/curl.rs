//! curl as the client.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Where curl is.
pub struct Curl(PathBuf);

/// An answer as curl saw it.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// `1.1` or `2`.
    pub version: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Curl {
    /// `None` when the calling test is to return, see `meshwork_testkit::tool`.
    #[track_caller]
    pub fn find() -> Option<Self> {
        meshwork_testkit::tool("curl").map(Self)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.0);
        command.args(["-sS", "--include", "--max-time", "60", "--write-out", "\n%{http_version}"]);
        command.args(arguments).env_remove("http_proxy").env_remove("HTTP_PROXY");
        command
    }

    /// One exchange that must come about, whatever its status.
    pub fn get(&self, arguments: &[&str]) -> Reply {
        let mut command = self.command(arguments);
        let output = command.output().expect("curl runs");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Reply::parse(&String::from_utf8(output.stdout).expect("these answers are text"))
    }

    /// What curl says of an exchange that must not come about.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("curl runs");
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Reply {
    pub fn parse(text: &str) -> Self {
        let (text, version) = text.rsplit_once('\n').expect("curl writes the version last");
        let (mut head, mut body) = text.split_once("\r\n\r\n").expect("a head");
        let status = |head: &str| head.split(' ').nth(1).expect("a status").parse().expect("a number");
        while status(head) < 200_u16 {
            (head, body) = body.split_once("\r\n\r\n").expect("a final head");
        }
        let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        Self {
            status: status(head),
            version: version.to_owned(),
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            body: body.to_owned(),
        }
    }

    /// The values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Status and text of an answer that is the gateway's own.
    pub fn failure(&self) -> (u16, &str) {
        (self.status, self.body.trim_end())
    }

    /// What the upstream says that reached it.
    pub fn seen(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}
