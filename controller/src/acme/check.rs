//! Looks at a name as the certificate authority will, before it is asked: a name that does not lead here would only count
//! against the account's limits.

use super::record::{ChallengeKind, Problem};
use super::{AcmeSettings, dns};
use flex_model::{Challenge, DomainName};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One look at one address.
const LOOK: Duration = Duration::from_secs(5);
/// How long a challenge may take to get to every router.
const SPREAD: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);
/// What is read of an answer.
const MAX_ANSWER: u64 = 16 << 10;

/// Whether the name's addresses show `probe`, which the routers have been told.
pub async fn reaches(
    settings: &AcmeSettings,
    kind: ChallengeKind,
    probe: &Challenge,
    target: &DomainName,
) -> Result<(), Problem> {
    let name = &probe.name;
    let addresses = match settings.resolver {
        Some(server) => dns::addresses(server, name).await,
        None => system(name).await,
    };
    let point = || format!("Point its DNS record (CNAME or ALIAS) at {target}, and wait until the change has spread.");
    let addresses = addresses.map_err(|e| Problem::new("acme_dns", format!("Looking up {name} failed: {e}."), point()))?;
    if addresses.is_empty() {
        return Err(Problem::new("acme_dns", format!("{name} has no address in DNS."), point()));
    }
    let until = tokio::time::Instant::now() + SPREAD;
    loop {
        let mut said = Vec::new();
        for ip in &addresses {
            let look = async {
                match kind {
                    ChallengeKind::TlsAlpn01 => tls(SocketAddr::new(*ip, settings.tls_port), probe).await,
                    _ => http(SocketAddr::new(*ip, settings.http_port), probe).await,
                }
            };
            match tokio::time::timeout(LOOK, look).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(e)) => said.push(format!("{ip}: {e}")),
                Err(_) => said.push(format!("{ip}: no answer within {} s", LOOK.as_secs())),
            }
        }
        if tokio::time::Instant::now() > until {
            let port = if kind == ChallengeKind::TlsAlpn01 { settings.tls_port } else { settings.http_port };
            return Err(Problem::new(
                "acme_unreachable",
                format!("{name} does not lead here on port {port} ({}).", said.join("; ")),
                format!("{} Port {port} must be open and lead to the router.", point()),
            ));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn system(name: &DomainName) -> Result<Vec<IpAddr>, String> {
    let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(|e| e.to_string())?;
    let mut all: Vec<IpAddr> = found.map(|a| a.ip()).collect();
    all.dedup();
    Ok(all)
}

async fn http(at: SocketAddr, probe: &Challenge) -> Result<(), String> {
    let mut stream = TcpStream::connect(at).await.map_err(|e| format!("port {}: {e}", at.port()))?;
    let (name, token) = (&probe.name, &probe.token);
    let request = format!("GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    let failed = |e: std::io::Error| format!("port {}: {e}", at.port());
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or("nothing that is HTTP");
    // The authority follows redirects, and where they lead is not ours to judge.
    if answer.ends_with(&format!("\r\n\r\n{}", probe.proof)) || ["301", "302", "307", "308"].contains(&status) {
        return Ok(());
    }
    Err(format!("another server answers (status {status})"))
}

async fn tls(at: SocketAddr, probe: &Challenge) -> Result<(), String> {
    let chain = probe.alpn.as_ref().map(|a| a.chain.as_bytes()).unwrap_or_default();
    let expected = CertificateDer::from_pem_slice(chain).map_err(|e| e.to_string())?;
    let provider = Arc::new(ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Exactly { expected, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let name = ServerName::try_from(probe.name.to_string()).map_err(|e| e.to_string())?;
    let stream = TcpStream::connect(at).await.map_err(|e| format!("port {}: {e}", at.port()))?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map(drop).map_err(|e| e.to_string())
}

/// Takes one certificate and no other; who signed it does not matter.
#[derive(Debug)]
struct Exactly {
    expected: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("another server answers, with a certificate of its own".into()))
    }

    // The certificate was made for this look and is known to the byte; checking its signature would fail over its critical
    // extension (RFC 8737 section 3), which the library does not know.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
