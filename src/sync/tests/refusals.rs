//! Servers that answer, and say no.

use super::*;

fn eval(link: &mut Link, script: &str) -> LinkError {
    error_of(link.eval(&Script::new(script), "{k}", b"v"))
}

#[test]
fn a_replica_is_lost_because_the_master_is_elsewhere() {
    let master = Server::start(&[]);
    let of = master.port().to_string();
    let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {of}")]);
    wait_until("the replica is up", || replica.cli(&["INFO"]).contains("master_link_status:up"));
    let mut link = open(&replica.url()).unwrap();
    let error = error_of(put(&mut link, b"v"));
    assert_eq!(error.to_string(), "it is a read-only replica");
    assert!(error.is_lost());
}

#[test]
fn a_replica_without_its_master_says_so() {
    let args = ["--replicaof", &format!("127.0.0.1 {}", free_port())];
    let replica = Server::start(&[&args[..], &["--replica-serve-stale-data", "no"]].concat());
    let error = error_of(open(&replica.url()).and_then(|mut link| put(&mut link, b"v")));
    assert!(matches!(error, LinkError::MasterDown) && error.is_lost(), "{error}");
}

#[test]
fn a_full_server_refuses_and_the_link_goes_on() {
    let server = Server::start(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]);
    let mut link = open(&server.url()).unwrap();
    let error = error_of(put(&mut link, b"v"));
    assert_eq!(error.to_string(), "it is out of memory (maxmemory)");
    assert!(!error.is_lost());
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    put(&mut link, b"v").unwrap();
}

#[test]
fn a_server_that_cannot_save_refuses() {
    let server = Server::start(&["--dbfilename", "data"]);
    let mut link = open(&server.url()).unwrap();
    // No file can take a directory's place.
    std::fs::create_dir(server.socket().with_file_name("data")).unwrap();
    server.cli(&["CONFIG", "SET", "save", "1 1"]);
    let mut error = None;
    wait_until("writes are refused", || {
        error = put(&mut link, b"v").err();
        error.is_some()
    });
    let error = error.unwrap();
    assert!(matches!(error, LinkError::Unsafe(_)) && !error.is_lost(), "{error}");
}

#[test]
fn a_key_of_another_type_is_reported() {
    let server = Server::start(&[]);
    server.cli(&["HSET", "{k}", "a", "1"]);
    let mut link = open(&server.url()).unwrap();
    let error = eval(&mut link, "return redis.call('GET', KEYS[1])");
    assert!(matches!(error, LinkError::WrongType(_)) && !error.is_lost(), "{error}");
    put(&mut link, b"v").unwrap();
}

#[test]
fn an_endless_script_of_somebody_else_keeps_busy() {
    let server = Server::start(&["--busy-reply-threshold", "20"]);
    let url = server.url();
    let mut link = open(&url).unwrap();
    let endless = std::thread::spawn(move || {
        let mut link = open(&url).unwrap();
        eval(&mut link, "while true do end")
    });
    let mut error = None;
    wait_until("it is busy", || {
        error = put(&mut link, b"v").err();
        error.is_some()
    });
    let error = error.unwrap();
    assert!(matches!(error, LinkError::Busy) && !error.is_lost(), "{error}");
    server.cli(&["SCRIPT", "KILL"]);
    assert!(matches!(endless.join().unwrap(), LinkError::Server(_)));
    put(&mut link, b"v").unwrap();
}

#[test]
fn errors_in_scripts_are_one_short_line() {
    let server = Server::start(&[]);
    let mut link = open(&server.url()).unwrap();
    for script in [
        "this is no Lua",
        "return redis.call('NOSUCH')",
        "error({err = 'MINE a\\nb ' .. string.rep('long ', 1000)})",
    ] {
        let error = eval(&mut link, script);
        assert!(matches!(error, LinkError::Server(_)) && !error.is_lost(), "{error}");
        let text = error.to_string();
        assert!(text.len() < 250 && !text.contains('\n'), "{text}");
    }
    let error = eval(&mut link, "return 7");
    assert_eq!(error.to_string(), "its answer is of an unexpected kind (a number)");
    put(&mut link, b"v").unwrap();
}

#[test]
fn errors_that_older_servers_wrap_are_known() {
    let wrapped = "-ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -OOM \
                   command not allowed when used memory > 'maxmemory'.\r\n";
    let value = redis::parse_redis_value(wrapped.as_bytes()).unwrap();
    let redis::Value::ServerError(error) = value else { panic!("{value:?}") };
    assert!(matches!(LinkError::of_server(&error), LinkError::OutOfMemory));
}
