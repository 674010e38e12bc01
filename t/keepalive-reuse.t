# registry_keepalive: which connections are used again, how often, and how many are kept.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/keepalive-backend.pl";

my %backend = map { $_ => NumberedBackend->new(name => $_) } 'a' .. 'h';

# name => [ servers, parameters, namespace ]
my %upstreams = (
    three    => [ 'a b c', '8' ],
    same     => [ 'a b c', '8', 'three' ],
    last     => [ 'a', '8' ],
    requests => [ 'a', '8 requests=3' ],
    one      => [ 'a', '8 requests=1' ],
    time     => [ 'h', '8 time=300ms' ],
    timeout  => [ 'e', '8 timeout=300ms' ],
    used     => [ 'f', '8 timeout=800ms' ],
    mixed    => [ 'g', '8 timeout=700ms' ],
    server   => [ 'e f', '8 per_server=2' ],
    bound    => [ 'a b c d', '3' ],
    single   => [ 'a b', '1' ],
    stock    => [ 'h', undef ],
);
my ($http, $server) = ('registry main 256k { }', '');
for my $name (sort keys %upstreams) {
    my ($list, $parameters, $namespace) = @{ $upstreams{$name} };
    my $servers = $namespace ? '' : join ' ', map { 'server ' . $backend{$_}->address . ';' } split / /, $list;
    $namespace ||= $name;
    my $keeps = defined $parameters ? "registry_keepalive $parameters;" : 'keepalive 8; keepalive_time 300ms;';
    $http .= "upstream $name { registry main namespace=$namespace; registry_balance round_robin; $servers $keeps }\n";
    $server .= "location = /$name { proxy_pass http://$name; }\n";
}
my $node = RegistryTest->nginx(
    workers => 1, http => $http, server => qq{
        location /upstream/ { registry_api main; }
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        $server
    },
);

# "a 1.1", with connections numbered from the first that this subtest saw.
my %first;
sub from_here { %first = () }
sub get {
    my ($path) = @_;
    return named($node->get($path));
}
sub named {
    my ($r) = @_;
    my ($name, $connection, $request) = ($r->{headers}{'x-backend'}, number($r) =~ /^(\d+)\.(\d+)$/);
    return "none ($r->{status})" unless $connection;
    $first{$name} = $connection - 1 unless defined $first{$name};
    return "$name " . ($connection - $first{$name}) . ".$request";
}
# So that what other subtests have kept does not count.
sub base { return map { $backend{$_}->stats->{open} } @_ }
# For how long a connection that is idle now is still open at its server.
sub open_for {
    my ($backend, $base) = @_;
    my $start = time;
    return open_at($backend, $base, 5 * time_scale()) == $base ? time - $start : 'ever';
}

subtest 'a connection is found by its server' => sub {
    from_here();
    is_deeply([ map { get('/three') } 1 .. 3 ], [ 'a 1.1', 'b 1.1', 'c 1.1' ], 'a connection to each of three');
    is_deeply([ map { get('/three') } 1 .. 6 ], [ map { ("a 1.$_", "b 1.$_", "c 1.$_") } 2, 3 ], 'which serve the next requests');
    is_deeply([ map { get('/same') } 1 .. 3 ], [ 'a 2.1', 'b 2.1', 'c 2.1' ], 'another upstream on the same servers has its own');
    is_deeply([ map { get('/three') } 1 .. 3 ], [ 'a 1.4', 'b 1.4', 'c 1.4' ], 'and each stays with its own');
};

subtest 'the one used last comes first' => sub {
    from_here();
    is_deeply([ map { named($_) } at_once($node, 3, '/last') ], [ 'a 1.1', 'a 2.1', 'a 3.1' ], 'three at once, done one after the other');
    is_deeply([ map { get('/last') } 1 .. 3 ], [ 'a 3.2', 'a 3.3', 'a 3.4' ], 'the last one serves what comes alone');
    is_deeply([ map { named($_) } at_once($node, 4, '/last') ], [ 'a 3.5', 'a 2.2', 'a 1.2', 'a 4.1' ], 'then the others, then a new one');
    is(get('/last'), 'a 4.2', 'which is now the last one');
};

subtest 'requests=: so many on one connection' => sub {
    from_here();
    my ($open) = base('a');
    is_deeply([ map { get('/requests') } 1 .. 7 ], [ (map { ("a $_.1", "a $_.2", "a $_.3") } 1, 2), 'a 3.1' ], 'three, then another connection');
    is(open_at($backend{a}, $open + 1), $open + 1, 'those that have served are closed');
    is_deeply([ map { get('/one') } 1 .. 3 ], [ map { "a $_.1" } 4 .. 6 ], 'requests=1 keeps none');
    is(open_at($backend{a}, $open + 1), $open + 1, 'at all');
};

subtest 'time=: the age after which a connection serves no other request, as keepalive_time' => sub {
    for my $upstream (qw(time stock)) {
        from_here();
        my ($open) = base('h');
        is(get("/$upstream"), 'h 1.1', "$upstream: a connection");
        is(get("/$upstream"), 'h 1.2', 'that is used while it is young');
        sleep 0.4;
        is(get("/$upstream"), 'h 1.3', 'and once more when it is not');
        is(open_at($backend{h}, $open), $open, 'then it is closed');
        is(get("/$upstream"), 'h 2.1', 'and the next request has another');
    }
};

subtest 'timeout=: how long a connection may be idle' => sub {
    from_here();
    is(get('/timeout'), 'e 1.1', 'a connection');
    sleep 0.1;
    is(get('/timeout'), 'e 1.2', 'is used before that');
    my $took = open_for($backend{e}, 0);
    cmp_ok($took, '>', 0.25, 'it is open for that time');
    cmp_ok($took, '<', 0.3 + 0.5 + 0.2 * time_scale(), 'and closed not much later') or diag($took);
    is(get('/timeout'), 'e 2.1', 'the next request has another');
    sleep 0.33;
    is(get('/timeout'), 'e 3.1', 'one that is over its time is not used, closed or not');

    # Idle since its last use, not since it was made.
    is_deeply([ map { sleep 0.3; get('/used') } 1 .. 5 ], [ map { "f 1.$_" } 1 .. 5 ], 'use begins the time anew');
    is($backend{f}->stats->{open}, 1, 'the connection is there still');
    is(open_at($backend{f}, 0), 0, 'and not for ever');

    # One in use does not keep an idle one alive.
    at_once($node, 2, '/mixed');
    my $end = time + 1.6;
    my %used;
    while (time < $end) { $used{ (get('/mixed') =~ /^(g \d+)/)[0] }++; sleep 0.05 }
    is(scalar keys %used, 1, 'of two, one is used on and on') or diag(explain(\%used));
    is($backend{g}->stats->{open}, 1, 'the other has gone');
};

subtest 'per_server=: so many to one server' => sub {
    open_at($backend{$_}, 0) for qw(e f);
    at_once($node, 8, '/server');
    is(open_at($backend{e}, 2), 2, 'of four to one server two are kept');
    is(open_at($backend{f}, 2), 2, 'and of four to the other');
};

subtest 'CONNECTIONS: so many in all, the one idle for the longest time goes first' => sub {
    from_here();
    my %open;
    @open{qw(a b c d)} = base(qw(a b c d));
    is_deeply([ map { get('/bound') } 1 .. 3 ], [ 'a 1.1', 'b 1.1', 'c 1.1' ], 'three connections, as many as there may be');
    is(get('/bound'), 'd 1.1', 'a fourth');
    is(open_at($backend{a}, $open{a}), $open{a}, 'the first is closed');
    is(open_at($backend{$_}, $open{$_} + 1), $open{$_} + 1, "that to $_ is kept") for qw(b c d);
    is_deeply([ map { get('/bound') } 1 .. 4 ], [ map { "$_ 2.1" } qw(a b c d) ], 'four servers in turn never find theirs');
    is_deeply([ map { get('/single') } 1 .. 4 ], [ 'a 3.1', 'b 3.1', 'a 4.1', 'b 4.1' ], 'nor two in a pool of one');
};
nothing_in_flight($node, grep { $_ ne 'same' } sort keys %upstreams);
$node->log_is_clean;

subtest 'each worker has a pool of its own' => sub {
    my $a = NumberedBackend->new(name => 'workers');
    my $many = RegistryTest->nginx(
        workers => 3, http => 'registry main 128k { } upstream a { registry main; registry_keepalive 2; server ' . $a->address . '; }',
        server => 'location /upstream/ { registry_api main; } location / { proxy_pass http://a; proxy_http_version 1.1; proxy_set_header Connection ""; }',
    );
    my $sum = parallel(24, 480, $many->url('/?delay=0.01'), keepalive => 0);
    is_deeply($sum->{status}, { 200 => 480 }, 'all are answered');
    my $open;
    ok(wait_until(sub { ($open = $a->stats->{open}) <= 6 }), 'two for each of three workers are kept') or diag($open);
    cmp_ok($open, '>', 0, 'and some are');
    nothing_in_flight($many, 'a');
    ok($many->quit, 'it ends at once with them');
    is(open_at($a, 0), 0, 'and they with it');
    $many->log_is_clean;
};

subtest 'as many connections as servers: each request finds its own, with 300 of them' => sub {
    my $SERVERS = 300;
    my $servers = RegistryTest->nginx(
        workers => 1, worker_connections => 1024, modules => [],
        http => 'server { listen 0.0.0.0:%%PORT_all%%; keepalive_requests 100000;
            location / { add_header X-Backend $server_addr; add_header X-Connection $connection.$connection_requests; return 204; } }',
    );
    my $port = $servers->port('all');
    my $front = RegistryTest->nginx(
        workers => 1, worker_connections => 2048, http => qq{
            registry main 1m { }
            upstream all    { registry main; registry_balance round_robin; registry_keepalive $SERVERS; }
            upstream fewer  { registry main namespace=all; registry_balance round_robin; registry_keepalive @{[ $SERVERS - 1 ]}; }
        }, server => q{
            location /upstream/ { registry_api main; }
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            location = /all   { proxy_pass http://all; }
            location = /fewer { proxy_pass http://fewer; }
        },
    );
    my $client = $front->client;
    for my $i (1 .. $SERVERS) {
        my $host = join '.', 127, 1, $i >> 8, $i & 255;
        $client->post('/upstream/add', body => "ns=all&host=$host&port=$port");
    }
    my $round = sub {
        my ($path) = @_;
        return { map {
            my $r = $client->get($path);
            ($r->{headers}{'x-backend'} || $r->{status} => (number($r) =~ /^(\d+)/)[0]);
        } 1 .. $SERVERS };
    };
    my $first = $round->('/all');
    is(scalar keys %$first, $SERVERS, 'a round goes to all');
    is_deeply($round->('/all'), $first, 'each has the same connection in the second');
    is_deeply($round->('/all'), $first, 'and in the third');
    $first = $round->('/fewer');
    my $second = $round->('/fewer');
    is(scalar(grep { $first->{$_} == $second->{$_} } keys %$first), 0, 'with one connection less no round finds any, as in every least recently used order');
    nothing_in_flight($front, 'all');
    $front->log_is_clean;
    $servers->log_is_clean;
};

done_testing;
