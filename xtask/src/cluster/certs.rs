//! Who is who in the cluster: an authority, a certificate for each program, kubeconfigs that name
//! them. All of it is made anew for each cluster and ends with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::process;

/// Longer than any cluster of this kind lives.
const DAYS: &str = "365";

/// A directory of certificates and keys, with the authority that signs them.
#[derive(Debug)]
pub(super) struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes an authority in `dir`, and the key that signs service accounts' tokens.
    pub(super) fn found(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let authority = Self {
            dir: dir.to_path_buf(),
        };
        authority.key("ca.key")?;
        authority.openssl(&format!(
            "req -x509 -new -key ca.key -days {DAYS} -subj /CN=picket-cluster -out ca.crt \
             -addext basicConstraints=critical,CA:TRUE \
             -addext keyUsage=critical,digitalSignature,keyCertSign"
        ))?;
        authority.openssl("genrsa -out sa.key 2048")?;
        authority.openssl("rsa -in sa.key -pubout -out sa.pub")?;
        Ok(authority)
    }

    /// A server's certificate, for these names and addresses.
    pub(super) fn server(&self, file: &str, name: &str, reached_at: &[String]) -> Result<()> {
        self.sign(file, &format!("/CN={name}"), &server_extensions(reached_at))
    }

    /// A client's, who is `user` in `group`.
    pub(super) fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<()> {
        let group = group.map(|group| format!("/O={group}")).unwrap_or_default();
        let extensions = "extendedKeyUsage=clientAuth\n";
        self.sign(file, &format!("{group}/CN={user}"), extensions)
    }

    /// A kubeconfig for the client `file`, with everything in it.
    pub(super) fn kubeconfig(&self, file: &str, server: &str) -> Result<String> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "picket", "cluster": {
                "server": server,
                "certificate-authority-data": self.base64("ca.crt")?,
            }}],
            "users": [{"name": file, "user": {
                "client-certificate-data": self.base64(&format!("{file}.crt"))?,
                "client-key-data": self.base64(&format!("{file}.key"))?,
            }}],
            "contexts": [{"name": "picket", "context": {"cluster": "picket", "user": file}}],
            "current-context": "picket",
        });
        Ok(format!("{config:#}\n"))
    }

    fn sign(&self, file: &str, subject: &str, extensions: &str) -> Result<()> {
        self.key(&format!("{file}.key"))?;
        let wanted = self.dir.join("extensions");
        fs::write(&wanted, extensions).with_context(|| format!("writing {}", wanted.display()))?;
        self.openssl(&format!(
            "req -new -key {file}.key -subj {subject} -out {file}.csr"
        ))?;
        self.openssl(&format!(
            "x509 -req -in {file}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days {DAYS} \
             -extfile extensions -out {file}.crt"
        ))
    }

    /// As PKCS #8: what Go and Rust both read.
    fn key(&self, file: &str) -> Result<()> {
        self.openssl(&format!(
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {file}"
        ))
    }

    fn base64(&self, file: &str) -> Result<String> {
        let mut openssl = process::command("openssl");
        openssl.args(["base64", "-A", "-in", file]);
        process::output(openssl.current_dir(&self.dir))
    }

    /// Words without blanks in them.
    fn openssl(&self, words: &str) -> Result<()> {
        let mut openssl = process::command("openssl");
        openssl.args(words.split_whitespace());
        process::output(openssl.current_dir(&self.dir)).map(drop)
    }
}

fn server_extensions(reached_at: &[String]) -> String {
    let names: Vec<String> = reached_at
        .iter()
        .map(|name| match name.parse::<std::net::IpAddr>() {
            Ok(_) => format!("IP:{name}"),
            Err(_) => format!("DNS:{name}"),
        })
        .collect();
    format!(
        "subjectAltName={}\nextendedKeyUsage=serverAuth\n",
        names.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_told_apart() {
        let names = ["127.0.0.1", "fd00::1", "localhost"].map(str::to_owned);
        assert_eq!(
            server_extensions(&names),
            "subjectAltName=IP:127.0.0.1,IP:fd00::1,DNS:localhost\nextendedKeyUsage=serverAuth\n"
        );
    }
}
