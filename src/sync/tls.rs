//! Whom to trust when the connection to Redis is encrypted.

use std::sync::{Arc, OnceLock};

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::endpoint::EndpointError;

/// The CA certificates that are trusted.
#[derive(Debug, Default)]
pub(super) struct Tls {
    /// None: the system's, read when they are needed first.
    roots: Option<Arc<RootCertStore>>,
    /// Made once: it keeps the sessions that make the next handshake shorter.
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Trusts these (PEM).
    ///
    /// # Errors
    ///
    /// [`EndpointError::NoCertificate`], [`EndpointError::Certificate`].
    pub(super) fn trusting(pem: &[u8]) -> Result<Self, EndpointError> {
        let mut roots = RootCertStore::empty();
        for (found, number) in CertificateDer::pem_slice_iter(pem).zip(1..) {
            let added = found.ok().and_then(|certificate| roots.add(certificate).ok());
            added.ok_or(EndpointError::Certificate(number))?;
        }
        if roots.is_empty() {
            return Err(EndpointError::NoCertificate);
        }
        Ok(Self { roots: Some(Arc::new(roots)), config: OnceLock::new() })
    }

    /// What a connection needs. None: the system has no CA certificates, or none that can be read.
    pub(super) fn config(&self) -> Option<Arc<ClientConfig>> {
        if let Some(config) = self.config.get() {
            return Some(Arc::clone(config));
        }
        let roots = match &self.roots {
            Some(roots) => Arc::clone(roots),
            None => Arc::new(system()?),
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .ok()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Some(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

/// One that is damaged or of an odd kind must not keep the others from being used.
fn system() -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    (!roots.is_empty()).then_some(roots)
}
