# scripts/heartbeat_client.sh: its settings, its exit codes, and what it does with answers
# that are none.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
use RegistryTest::Process qw(children);

require "$FindBin::Bin/heartbeat.pl";

our ($node, $backend, $TTL);
$node = RegistryTest->nginx(
    workers => 2,
    http => 'registry main 512k { heartbeat_ttl ' . 1000 * $TTL . 'ms; cleanup_interval 50ms; on_expire remove; }
        upstream backend { registry main; }',
    server => 'location /upstream/ { registry_api main; }
        location /only/registry/ { registry_api main namespace=only; }
        location / { proxy_pass http://backend; }',
);

subtest 'the environment says who, where and how' => sub {
    my $client = client({ HOST => '127.0.0.5', PORT => 81, NAMESPACE => '', API_PATH => '/only/registry/' });
    ok(wait_until(sub { servers($node, 'only')->{'127.0.0.5:81'} }), 'HOST, PORT, API_PATH; the namespace is the location\'s');
    is(stop($client), 0, 'it stops');
    is($node->get('/only/registry/status')->{json}{total}, 0, 'and deregisters there');
    $client = client({ HOST => '::1', NAMESPACE => 'six', BASE_URL => $node->url('/') });
    ok(wait_until(sub { ($node->get('/upstream/status?ns=six')->{json}{data} || [])->[0] }), 'IPv6 without brackets, a slash after BASE_URL');
    is(servers($node, 'six')->{ '[::1]:' . $backend->port }{state}, 'up', 'are understood');
    is(stop($client), 0, 'it stops');
};


subtest 'heartbeats that get through again' => sub {
    my $front = RegistryTest->backend(name => 'front', type => 'application/json', body => '{"code":200,"message":"Success"}');
    my $client = client({ BASE_URL => $front->url(''), TIMEOUT => 0.3 });
    ok(says($client, qr/registered already, heartbeat accepted/), 'a registry that knows the server');
    for my $trouble ([ status => 503 ], [ hang => 1 ], [ status => 500 ], [ close => 1 ]) {
        my $from = length said($client);
        $front->set(@$trouble);
        ok(wait_until(sub { substr(said($client), $from) =~ /failed \(1\): (?:HTTP $trouble->[1],|.*(?:timed out|timeout|empty reply))/i }),
            "fails: @$trouble") or diag(said($client));
        $front->clear;
        ok(wait_until(sub { substr(said($client), $from) =~ /get through again, after \d+ that failed/ }), 'and gets through again');
    }
    is(stop($client), 0, 'it stops');
};


subtest 'an answer that is not the registry\'s' => sub {
    for my $case ([ status => 404, 'a web server without it' ], [ status => 200, 'a place that answers all with 200' ]) {
        my ($name, $value, $what) = @$case;
        my $front = RegistryTest->backend(name => 'front', $name => $value, type => 'text/html', body => '<html>It works</html>');
        my $client = client('--once', { BASE_URL => $front->url('') });
        is(ends($client), 1, "$what: no heartbeat got through");
        my $url = $front->url('/upstream/');
        like(said($client), qr/failed: .*not the registry's: is \Q$url\E the right place/, 'and the reason');
    }
};

subtest '--once' => sub {
    my $client = client('--once');
    is(ends($client), 0, 'one heartbeat, exit code 0');
    ok(server(), 'the server is registered and stays');
    is(ends(client('--once')), 0, 'again');
    my ($heard, $created) = @{ server() }{qw(last_heartbeat created_at)};
    ok($heard > $created, 'it was a heartbeat');
    $node->quit;
    $client = client('--once');
    is(ends($client), 1, 'exit code 1 without nginx');
    like(said($client), qr/failed: /, 'and why');
    $node->start;
};


subtest 'what is wrong from the start is said at once' => sub {
    for my $case (
        [ 2, qr/PORT is not set/, { PORT => undef } ],
        map({ [ 2, qr/PORT must be 1 to 65535, not \Q$_\E/, { PORT => $_ } ] } '0', '65536', '-1', 'http', '80 '),
        map({ [ 2, qr/INTERVAL must be seconds, at least 0\.1, not \Q$_\E/, { INTERVAL => $_ } ] } '0', '0.05', '5s', '1,5'),
        [ 2, qr/TIMEOUT must be seconds/, { TIMEOUT => '0' } ],
        [ 2, qr/WEIGHT must be a whole number, not 1\.5/, { WEIGHT => '1.5' } ],
        [ 2, qr/MAX_CONNS must be a whole number/, { MAX_CONNS => 'all' } ],
        [ 2, qr/BASE_URL must begin with http/, { BASE_URL => '127.0.0.1' } ],
        [ 2, qr/TOKEN must be one line/, { TOKEN => "a\nb" } ],
        [ 3, qr/refused: HTTP 400, .*\bns\b/, { NAMESPACE => 'no good' } ],
        [ 3, qr/refused: HTTP 400, .*\bhost\b/, { HOST => 'no address' } ],
    ) {
        my ($code, $message, $env) = @$case;
        my $client = client($env);
        my $what = join ' ', map { defined $env->{$_} ? "$_=$env->{$_}" =~ s/\n/\\n/r : "no $_" } keys %$env;
        is(ends($client), $code, "exit code $code: $what");
        like(said($client), $message, 'and the reason');
        stop($client, 'KILL') if alive($client->{pid});
    }
    my $client = client('--bogus');
    is(ends($client), 2, 'an unknown argument');
    $client = client('--help');
    is(ends($client), 0, '--help');
    like(said($client), qr/Usage: .*HOST.*INTERVAL.*BASE_URL.*NAMESPACE.*TOKEN/s, 'tells what may be set');
};


subtest 'the token is sent, and shown to nobody' => sub {
    my $token = q{to"ken \\ 'with' $pecial%20 signs};
    my $front = RegistryTest->backend(name => 'front', delay => 0.3, type => 'application/json', body => '{"code":200,"message":"Success"}');
    my $client = client({ BASE_URL => $front->url(''), TOKEN => $token });
    ok(wait_until(sub { $front->stats->{active} }), 'a heartbeat is under way');
    my @seen;
    # curl is asking now: it and all that the script has started.
    my @processes = ($client->{pid}, map { ($_, children($_)) } children($client->{pid}));
    ok(@processes > 1, 'by processes that the script has started');
    for my $pid (@processes) {
        push @seen, "arguments of $pid" if index(slurp("/proc/$pid/cmdline"), 'ken ') >= 0;
        push @seen, "environment of $pid" if $pid != $client->{pid} && index(slurp("/proc/$pid/environ"), $token) >= 0;
    }
    is("@seen", '', 'neither arguments nor environment have it');
    ok(wait_until(sub { $front->stats->{last}{headers} }), 'the registry');
    is($front->stats->{last}{headers}{authorization}, "Bearer $token", 'gets it');
    is(stop($client), 0, 'the client stops');
    is($front->stats->{last}{headers}{authorization}, "Bearer $token", 'by a remove with the token');
    like($front->stats->{last}{uri}, qr{^/upstream/remove}, 'which it is');
    unlike(said($client), qr/ken /, 'the log does not have it either');
};


$node->log_is_clean;
done_testing;
