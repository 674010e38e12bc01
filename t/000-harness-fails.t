# A harness is worth what it catches: small test files, each with one thing wrong, are
# run on their own, and have to fail for that reason. Beside each stands one that
# passes, so that none of them fails for another reason.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
use RegistryTest::Process qw(spawn exit_status reap stop_process children);

my $dir = temp_dir();

# The runs that are waited for below: [pid, file with the output, whether it should
# pass, what the output must match, name].
my @runs;
my $count = 0;

# Each run takes ports and a server root of its own, whatever ours are.
my %own = map { ("TEST_NGINX_$_" => undef) }
    qw(SERVROOT PORT SERVER_PORT CLIENT_PORT), map { "PORT_$_" } 1 .. 9;

sub start_file {
    my ($text, %env) = @_;
    my $file = spew("$dir/" . ++$count . '.t', $text);
    my $pid = spawn([ $^X, "-I$FindBin::Bin/lib", $file ],
        stdout => "$file.out", stderr => "$file.out", env => { %own, %env });
    return ($pid, "$file.out");
}

sub expect {
    my ($passes, $name, $pattern, $text, %env) = @_;
    push @runs, [ start_file($text, %env), $passes, $pattern, $name ];
    # Two at a time: enough to use the machine, few enough not to stretch the waiting.
    wait_until(sub { 2 > grep { alive($_->[0]) } @runs }, 60);
}

sub blocks_file {
    my ($tests, $blocks, $setup) = @_;
    return "use Test::Nginx::Socket;\nplan tests => $tests;\n" . ($setup || '')
        . "run_tests();\n__DATA__\n\n=== TEST 1: it\n$blocks";
}

my $HELLO = <<'EOF';
--- config
    location = /t { return 200 "hello\n"; }
--- request
GET /t
EOF

my $WORKER = <<'EOF';
--- init
my $master = slurp(server_root() . '/logs/nginx.pid');
my $worker;
wait_until(sub { ($worker) = RegistryTest::Process::children($master + 0) });
kill 'KILL', $worker;
EOF

my $TRUNCATED = <<'EOF';
--- config
    location = /t { proxy_http_version 1.1; proxy_pass http://127.0.0.1:$TEST_NGINX_PORT_1; }
--- tcp_listen eval
$ENV{TEST_NGINX_PORT_1}
--- request
GET /t
--- response_body
abc
EOF

# An nginx that says something at its very end.
my $wrapper = "$dir/nginx";
spew($wrapper, <<'EOF');
#!/bin/sh
binary=${REAL_NGINX:-nginx}
case " $* " in *" -V "*) exec "$binary" -V;; esac
"$binary" "$@" &
trap 'kill -QUIT $!' QUIT
trap 'kill -TERM $!' TERM
wait $!
wait $!
echo "$LAST_WORDS" >> "$2/logs/error.log"
EOF
chmod 0755, $wrapper;
my %wrapped = (
    TEST_NGINX_BINARY => $wrapper,
    REAL_NGINX        => RegistryTest::Process::find_binary(),
    PATH              => "$ENV{PATH}:/usr/sbin",
    # The wrapper is a shell: nothing to look for there.
    TEST_NGINX_USE_VALGRIND => undef,
);

expect(1, 'a good block', qr/^ok 2 /m, blocks_file(2, "$HELLO--- response_body\nhello\n"));
expect(0, 'a wrong body', qr/got: "hello\\n"\s+# expected: "goodbye\\n"/,
    blocks_file(2, "$HELLO--- response_body\ngoodbye\n"));
expect(0, 'a body that does not match', qr/does not match/,
    blocks_file(2, "$HELLO--- response_body_like: ^bye\n"));
expect(0, 'a wrong status', qr/got: '200'\s+# expected: '404'/,
    blocks_file(1, "$HELLO--- error_code: 404\n"));
expect(0, 'a missing header', qr/header X-Test ok/,
    blocks_file(2, "$HELLO--- response_headers\nX-Test: 1\n"));
expect(0, 'a header that should not be there', qr/header Server not present/,
    blocks_file(2, "$HELLO--- response_headers\n! Server\n"));
expect(0, 'an absent error_log line', qr/pattern "no such line" matches a line/,
    blocks_file(2, "$HELLO--- error_log\nno such line\n"));
expect(0, 'a no_error_log line that is there', qr/pattern "client" does not match a line/,
    blocks_file(2, "--- config\n--- request\nGET /missing\n--- error_code: 404\n--- no_error_log\nclient\n"));
expect(0, 'other grep_error_log_out', qr/grep_error_log_out/,
    blocks_file(2, "$HELLO--- grep_error_log chop\nclosed\n--- grep_error_log_out\nclosed twice\n"));
expect(0, 'more tests than planned', qr/planned 1 .*but ran 2/,
    blocks_file(1, "$HELLO--- response_body\nhello\n"));
expect(0, 'a client that waits too long', qr/client socket timed out/,
    blocks_file(1, "$HELLO--- more_headers\nConnection: keep-alive\n--- timeout: 100ms\n"));
expect(0, 'a broken chunked body', qr/invalid chunked data/, blocks_file(2,
    qq($TRUNCATED--- tcp_reply eval\n"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n3\\r\\nabc\\r\\n"\n)));
expect(1, 'a whole chunked body', qr/^ok 2 /m, blocks_file(2,
    qq($TRUNCATED--- tcp_reply eval\n"HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n4\\r\\nabc\\n\\r\\n0\\r\\n\\r\\n"\n)));
expect(0, 'an nginx that does not start', qr/nginx did not start(?s:.*)unknown directive "foo"/,
    blocks_file(1, "--- config\n    foo;\n--- request\nGET /t\n"));
expect(0, 'an unknown variable of the environment', qr/no environment TEST_NGINX_NOT_SET defined/,
    blocks_file(1, "--- config\n    root \$TEST_NGINX_NOT_SET;\n--- request\nGET /t\n"));
expect(0, 'an nginx that should die and runs', qr/nginx dies as expected'\s+#.*\s+# it runs/,
    blocks_file(1, "--- config\n--- must_die\n"));
expect(0, 'an [emerg] that must_die does not name', qr/alarming lines.*\s+(?:#.*\s+)*# .*unknown directive/,
    blocks_file(1, "--- config\n    foo;\n--- must_die\n"));
expect(1, 'an [emerg] that must_die names', qr/^ok 2 /m,
    blocks_file(2, "--- config\n    foo;\n--- must_die\n--- error_log\nunknown directive\n"));
expect(0, 'another exit code than must_die says', qr/exit code 1$/m,
    blocks_file(2, "--- config\n    foo;\n--- must_die: 2\n--- error_log\nunknown directive\n"));
expect(0, 'a worker that was killed', qr/alarming lines.*\s+(?:#.*\s+)*# .*exited on signal 9/,
    blocks_file(1, "$HELLO$WORKER", "master_on();\n"));
expect(1, 'a worker that was killed, with the line named', qr/^ok 2 /m,
    blocks_file(2, "$HELLO$WORKER--- error_log\nexited on signal 9\n", "master_on();\n"));
expect(0, 'an nginx without master that is killed', qr/nginx died during the test/,
    blocks_file(1, "$HELLO--- ignore_response\n--- no_error_log\nnothing of the kind\n--- init\n"
        . 'my $crashing = slurp(server_root() . "/logs/nginx.pid") + 0; kill "KILL", $crashing;'
        . ' wait_until(sub { !alive($crashing) });' . "\n", 'master_off();'));
for my $words (
    '2026/01/01 00:00:00 [alert] 1#1: too late for the requests',
    '==1==ERROR: AddressSanitizer: heap-use-after-free',
    "thread '<unnamed>' panicked at src/lib.rs:1:1:",
) {
    expect(0, "last words: $words", qr/alarming lines.*\s+(?:#.*\s+)*# \Q$words\E/,
        blocks_file(1, $HELLO), %wrapped, LAST_WORDS => $words);
}
expect(1, 'harmless last words', qr/^ok 1 /m, blocks_file(1, $HELLO), %wrapped, LAST_WORDS => 'bye');

my $PLAIN = <<'EOF';
use RegistryTest;
my $node = RegistryTest->nginx(workers => 1, server => 'location / { return 200 ok; }');
is($node->get('/')->{status}, 200, 'it answers');
EOF
expect(1, 'a node with a clean log', qr/^ok 2 /m, "$PLAIN\$node->log_is_clean;\ndone_testing;\n");
expect(0, 'a node whose worker died', qr/^not ok 2(?s:.*)exited on signal 9/m,
    "$PLAIN\$node->kill_worker(\$node->workers);\n\$node->log_is_clean;\ndone_testing;\n");
expect(0, 'an allowed line that came too rarely', qr/^not ok 2(?s:.*)1 lines instead of 2/m,
    "$PLAIN\$node->kill_worker(\$node->workers);\n"
        . "\$node->log_is_clean(allow => [[qr/exited on signal 9/, 2]]);\ndone_testing;\n");
expect(1, 'an allowed line', qr/^ok 2 /m,
    "$PLAIN\$node->kill_worker(\$node->workers);\n"
        . "\$node->log_is_clean(allow => [[qr/exited on signal 9/, 1]]);\ndone_testing;\n");
expect(0, 'a dirty log that no test asked for', qr/^1\.\.1(?s:.*)at the end of the test(?s:.*)exited on signal 9/m,
    "$PLAIN\$node->kill_worker(\$node->workers);\ndone_testing;\n");
expect(0, 'a node that does not start', qr/unknown directive "foo"(?s:.*)nginx did not start/,
    "use RegistryTest;\nRegistryTest->nginx(http => 'foo;');\ndone_testing;\n");

for my $run (@runs) {
    my ($pid, $file, $passes, $pattern, $name) = @$run;
    wait_until(sub { !alive($pid) }, 60) or stop_process($pid, KILL => 1);
    my $output = slurp($file);
    my $exit = exit_status($pid);
    my $as_expected = $passes ? $exit == 0 : $exit != 0;
    ok($as_expected && $output =~ $pattern, ($passes ? 'passes: ' : 'fails: ') . $name)
        or diag("status $exit, does ", $output =~ $pattern ? '' : 'not ', "match $pattern\n$output");
}

# However a test ends, it leaves no process and (killed outright apart) no directory.
my $HANGING = <<'EOF';
use RegistryTest;
my $backend = RegistryTest->backend(name => 'a');
my $node = RegistryTest->nginx(server => 'location / { return 200 ok; }');
my $load = load_start(url => $node->url);
spew($ENV{TELL}, join ' ', $node->dir, $node->pid, $node->workers, $backend->pid, map { $_->{pid} } @{ $load->{children} });
$ENV{HOW} eq 'die' ? die "on purpose\n" : sleep 60;
EOF
for my $how (qw(die INT TERM KILL)) {
    my $tell = "$dir/tell.$how";
    my ($pid) = start_file($HANGING, TELL => "$tell.part", HOW => $how);
    my @left;
    ok(wait_until(sub { (@left = split ' ', slurp("$tell.part")) == 6 }, 20), "$how: it runs");
    my $node_dir = shift @left;
    kill $how, $pid if $how ne 'die';
    ok(wait_until(sub { !alive($pid) }, 20), "$how: it ends");
    ok(wait_until(sub { !grep { alive($_) } @left }, 10), "$how: and its processes with it");
    # What is killed outright cannot tidy up.
    if ($how eq 'KILL') { RegistryTest::Process::reap($_) for @left; system 'rm', '-rf', $node_dir }
    else                { ok(!-e $node_dir, "$how: and its directory") }
}

# Two runs at once do not meet.
my @twins = map { [ start_file(slurp("$FindBin::Bin/000-harness-blocks.t")) ] } 1 .. 2;
for my $twin (@twins) {
    my ($pid, $file) = @$twin;
    wait_until(sub { !alive($pid) }, 60);
    is(exit_status($pid), 0, 'one of two runs at the same time') or diag(slurp($file));
}

done_testing;
