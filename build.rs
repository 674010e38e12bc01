//! Passes on what `nginx-sys` learned from the nginx it was built against.
//!
//! `nginx-sys` reads the configured headers and tells its dependents, through `DEP_NGINX_*`, which
//! features that nginx has. They become `cfg(ngx_feature = "…")` here, so that the module compiles
//! in what the server it will be loaded into can do (TLS sessions, for example).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEP_NGINX_FEATURES");

    let features = std::env::var("DEP_NGINX_FEATURES").unwrap_or_default();
    for feature in features.split(',').map(str::trim).filter(|f| !f.is_empty()) {
        println!("cargo::rustc-cfg=ngx_feature=\"{feature}\"");
    }
}
