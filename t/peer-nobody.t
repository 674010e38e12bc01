# Nobody eligible: a 502, nginx's own line, and one that counts why each was left out.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $good = RegistryTest->backend(name => 'good');
my $port = RegistryTest->backend(name => 'refuses', start => 0)->port;
my $ttl = 0.4 * time_scale();
my %methods = (lc => '', rr => 'registry_balance round_robin;');
my $node = RegistryTest->nginx(
    workers => 1,
    http => qq{
        registry main  1m { heartbeat_ttl 0; }
        registry short 1m { heartbeat_ttl @{[ 1000 * $ttl ]}ms; cleanup_interval 1h; }
        map \$uri \$ns { "~^/../(?<name>[^/]+)" \$name; }
        upstream lc  { registry main namespace=\$ns; }
        upstream rr  { registry main namespace=\$ns; registry_balance round_robin; }
        upstream exp { registry short namespace=\$ns; }
        upstream lines {
            registry main;
            server 127.0.0.1:$port;
            server 127.0.0.2:$port down;
            server 127.0.0.3:$port backup;
            server 127.0.0.4:$port max_fails=0 backup down;
        }
    },
    server => q{
        location /upstream/ { registry_api main; }
        location /short/    { registry_api short; }
        add_header X-Addr $upstream_addr always;
        add_header X-Status $upstream_status always;
        location /lc/       { proxy_pass http://lc; }
        location /rr/       { proxy_pass http://rr; }
        location /ex/       { proxy_pass http://exp; }
        location /lines     { proxy_pass http://lines; }
    },
);

sub call {
    my ($endpoint, $ns, $host, %more) = @_;
    my $api = delete $more{api} || '/upstream/';
    my $r = $node->post("$api$endpoint", body => form({ ns => $ns, host => $host, port => $port, %more }));
    die "$endpoint: $r->{status} $r->{body}" if $r->{status} != 200;
    return;
}

# What is left out, and how: N servers each.
my $next = 0;
sub host { $next++; return '127.1.' . int($next / 200) . '.' . (1 + $next % 200) }
my %make = (
    disabled     => sub { my $h = host(); call(add => $_[0], $h); call(toggle => $_[0], $h, action => 'disable') },
    draining     => sub { my $h = host(); call(add => $_[0], $h); call(drain => $_[0], $h) },
    'weight 0'   => sub { call(add => $_[0], host(), weight => 0) },
    ready        => sub { call(add => $_[0], host()) },
    'disabled and draining' => sub {
        my $h = host();
        call(add => $_[0], $h, weight => 0);
        call(drain => $_[0], $h);
        call(toggle => $_[0], $h, action => 'disable');
    },
);
my $namespaces = 0;
sub namespace {
    my (%numbers) = @_;
    my $ns = 'ns' . ++$namespaces;
    for my $what (sort keys %numbers) { $make{$what}->($ns) for 1 .. $numbers{$what} }
    return $ns;
}

# The error lines of a request, up to where it happened.
sub lines {
    my ($path) = @_;
    my $from = $node->log_size;
    my $r = $node->get($path);
    my @lines = map { /\[error\] \d+#\d+: \*\d+ (.*?) while connecting to upstream, client: 127/ ? $1 : () }
        split /\n/, $node->error_log($from);
    return ($r, @lines);
}

sub nobody {
    my ($path, $why, $what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($method, $ns) = $path =~ m{^/(\w+)/(\w+)};
    my $registry = $method eq 'ex' ? 'short' : 'main';
    my ($r, @lines) = lines($path);
    is($r->{status}, 502, "$what: 502");
    is($r->{headers}{'x-addr'}, $method eq 'ex' ? 'exp' : $method, "$what: the upstream stands for the server");
    is_deeply(\@lines, [ qq(registry "$registry": no eligible server in namespace "$ns": $why), 'no live upstreams' ],
        "$what: the two lines");
    return;
}

for my $method (qw(lc rr)) {
    nobody("/$method/" . namespace(disabled => 2), '2 disabled', 'disabled');
    nobody("/$method/" . namespace(draining => 3), '3 draining', 'draining');
    nobody("/$method/" . namespace('weight 0' => 1), '1 weight 0', 'weight 0');
    nobody("/$method/" . namespace('disabled and draining' => 2), '2 disabled', 'each server is counted once');
    nobody("/$method/" . namespace(disabled => 3, draining => 2, 'weight 0' => 1), '3 disabled, 2 draining, 1 weight 0', 'several');
    nobody("/$method/" . namespace(disabled => 300), '300 disabled', 'many');
}

subtest 'failed' => sub {
    my $ns = namespace(ready => 3, disabled => 1);
    my ($r, @lines) = lines("/lc/$ns");
    is($r->{headers}{'x-status'}, '502, 502, 502', 'a request tries all three');
    is(scalar(grep { /no eligible server|no live upstreams/ } @lines), 0, 'and ends with the last one: none was needed any more');
    nobody("/lc/$ns", '1 disabled, 3 failed', 'the next one');
    api($node, reset => { ns => $ns });
    is($node->get("/lc/$ns")->{headers}{'x-status'}, '502, 502, 502', 'forgiven, they are tried again');
};

subtest 'at max_conns' => sub {
    my $ns = namespace(disabled => 1);
    is(api($node, add => { ns => $ns, host => $good->host, port => $good->port, max_conns => 1 })->{status}, 200, 'a limit of 1');
    my $client = $node->client;
    $client->send("GET /lc/$ns?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    ok(wait_until(sub { connections($node, $ns) == 1 }), 'is reached');
    nobody("/$_/$ns", '1 disabled, 1 at max_conns', $_) for qw(lc rr);
    $client->close;
    ok(wait_until(sub { connections($node, $ns) == 0 }), 'no longer');
    is($node->get("/lc/$ns")->{status}, 200, 'there is room again');
};

subtest 'expired' => sub {
    my @namespaces = (
        [ 'few', 3, '3 expired' ],
        [ 'many', 30, '30 expired' ],
        [ 'mixed', 30, '30 expired, 1 disabled' ],
    );
    for (@namespaces) {
        my ($ns, $count) = @$_;
        call(add => $ns, host(), api => '/short/') for 1 .. $count;
    }
    my $disabled = host();
    call(add => 'mixed', $disabled, api => '/short/');
    call(toggle => 'mixed', $disabled, action => 'disable', api => '/short/');
    sleep 1.2 * $ttl;
    for (@namespaces) {
        my ($ns, $count, $why) = @$_;
        nobody("/ex/$ns", $why, "$count servers, at the first request");
        nobody("/ex/$ns", $why, "$count servers, at the second");
    }
    for (@namespaces) {
        my ($ns, $count) = @$_;
        is($node->post('/short/cleanup', body => form({ ns => $ns }))->{status}, 200, "$ns: cleanup");
        my @said = map { /server (\S+) expired in namespace "$ns"/ ? $1 : () } $node->grep_log(qr/\[notice\]/);
        is(scalar @said, $count, "$ns: each is said to have expired");
        is(scalar(keys %{ { map { $_ => 1 } @said } }), $count, "$ns: once");
    }
    call(refresh => 'mixed', $disabled, api => '/short/');
    nobody('/ex/mixed', '30 expired, 1 disabled', 'a heartbeat does not enable');
};

subtest 'server lines' => sub {
    my ($r, @lines) = lines('/lines');
    is($r->{headers}{'x-addr'}, "127.0.0.1:$port, 127.0.0.3:$port", 'those that are not down are tried');
    (undef, @lines) = lines('/lines');
    is($lines[0], 'registry "main": no eligible server in namespace "lines": 2 disabled, 2 failed', 'then none is left');
};

subtest 'many requests: a line each' => sub {
    my $ns = namespace(disabled => 1);
    my $from = $node->log_size;
    my $sum = parallel(10, 100, $node->url("/lc/$ns"));
    is_deeply($sum->{status}, { 502 => 100 }, 'nobody for a hundred requests');
    is(scalar($node->grep_log(qr/no eligible server in namespace "$ns": 1 disabled while/, $from)), 100, 'each says why');
};

$node->log_is_clean;
done_testing;
