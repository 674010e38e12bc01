# Stock keepalive in an upstream of a registry: connections are used again, idle ones
# are no requests, and one that turns out dead costs nothing but a new connection.
#
# A backend with close_idle closes a kept connection at the moment when the next request
# comes on it: nginx can't know before.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my %backend = (
    (map { $_ => RegistryTest->backend(name => $_) } qw(a b c)),
    fin => RegistryTest->backend(name => 'fin', close_idle => 'fin'),
    rst => RegistryTest->backend(name => 'rst', close_idle => 'rst'),
    unix => RegistryTest->backend(name => 'unix', host => 'unix', close_idle => 'fin'),
    ipv6 => RegistryTest->backend(name => 'ipv6', host => '::1', close_idle => 'fin'),
);
my %name = map { $backend{$_}->address => $_ } keys %backend;

# name => [ servers, further lines of the upstream, of the location ]
my %upstreams = (
    three    => [ 'a b c', 'keepalive 8;' ],
    small    => [ 'a b c', 'keepalive 1;' ],
    times    => [ 'a', 'keepalive 8; keepalive_requests 3;' ],
    full     => [ 'a:max_conns=1', 'keepalive 8;' ],
    restart  => [ 'a b', 'keepalive 8;' ],
    hangs    => [ 'a b', 'keepalive 8;', 'proxy_read_timeout 300ms;' ],
    fin      => [ 'fin b:backup', 'keepalive 8;' ],
    rst      => [ 'rst b:backup', 'keepalive 8;' ],
    ipv6     => [ 'ipv6 b:backup', 'keepalive 8;' ],
    unix     => [ 'unix b:backup', 'keepalive 8;' ],
    only     => [ 'fin', 'keepalive 8;' ],
    limited  => [ 'fin:max_conns=1 b:backup', 'keepalive 8;' ],
    two      => [ 'fin rst', 'keepalive 8;' ],
    tries    => [ 'fin b:backup', 'keepalive 8;', 'proxy_next_upstream_tries 1;' ],
    off      => [ 'fin b:backup', 'keepalive 8;', 'proxy_next_upstream off;' ],
    post     => [ 'fin b:backup', 'keepalive 8;' ],
    resend   => [ 'fin b:backup', 'keepalive 8;', 'proxy_next_upstream error non_idempotent;' ],
    dies     => [ 'fin b:backup', 'keepalive 8;' ],
    loop     => [ 'fin b:backup', 'keepalive 16;' ],
);

my ($http, $server) = ('registry main 256k { }', '');
for my $name (sort keys %upstreams) {
    my ($list, $lines, $directives) = @{ $upstreams{$name} };
    my $servers = join ' ', map {
        my ($of, $more) = split /:/;
        'server ' . $backend{$of}->address . ' ' . ($more || '') . ';';
    } split / /, $list;
    $http .= "upstream registry_$name { registry main namespace=$name; registry_balance round_robin; $servers $lines }\n"
        . "upstream stock_$name { $servers $lines }\n";
    $server .= "location = /$_/$name { proxy_pass http://${_}_$name; " . ($directives || '') . " }\n" for qw(registry stock);
}
sub node {
    my (%opt) = @_;
    return RegistryTest->nginx(
        workers => 1, http => $http, server => qq{
            location /upstream/ { registry_api main; }
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            add_header X-Addr \$upstream_addr always;
            add_header X-Status \$upstream_status always;
            $server
        }, %opt,
    );
}
my $node = node();

# "status: server status, server status"
sub seen {
    my ($r) = @_;
    my @addresses = split /, /, $r->{headers}{'x-addr'};
    my @statuses = split /, /, $r->{headers}{'x-status'};
    return "$r->{status}: " . join ', ', map { ($name{ $addresses[$_] } || $addresses[$_]) . " $statuses[$_]" } 0 .. $#addresses;
}
sub get { return seen($node->get("/$_[0]")) }

# Connections made to backends since the last time they were asked for.
my %made;
sub made {
    return join ' ', map {
        my $now = $backend{$_}->stats->{connections};
        my $before = $made{$_} || 0;
        $made{$_} = $now;
        "$_=" . ($now - $before);
    } @_;
}
sub fails { my ($ns) = @_; my $n = 0; $n += $_->{fails} for values %{ servers($node, $ns) }; return $n }

subtest 'connections are used again' => sub {
    for my $kind (qw(registry stock)) {
        made(qw(a b c));
        my @got = map { get("$kind/three") } 1 .. 9;
        is(made(qw(a b c)), 'a=1 b=1 c=1', "$kind: one to each of three servers does for nine requests");
        is(scalar(grep { /^200: \w 200$/ } @got), 9, "$kind: all are answered at once");
    }
    is(connections($node, 'three'), 0, 'idle connections are no requests');
    is(get('registry/small') =~ /^200/, 1, 'a pool of one connection, three servers') for 1 .. 6;
    is(made(qw(a b c)), 'a=2 b=2 c=2', 'each request has to make its own');
    is(connections($node, 'small'), 0, 'nothing in flight');
    get('registry/times') for 1 .. 9;
    is(made('a'), 'a=3', 'keepalive_requests 3: nine requests, three connections');
    is(get('registry/full'), '200: a 200', 'an idle connection takes no room of max_conns') for 1 .. 3;
    is(made('a'), 'a=1', 'and is used again');
};

subtest 'an idle connection that is closed is noticed at once' => sub {
    get('registry/restart') for 1 .. 4;
    is(made(qw(a b)), 'a=1 b=1', 'a connection to each');
    $backend{a}->stop;
    $backend{a}->start;
    $made{a} = 0;
    is_deeply({ map { get('registry/restart') => 1 } 1 .. 4 }, { '200: a 200' => 1, '200: b 200' => 1 },
        'a server that was started again gets its requests, with no try in vain');
    is(fails('restart'), 0, 'no failure');
    $backend{a}->stop;
    my %seen = map { get('registry/restart') => 1 } 1 .. 4;
    is_deeply(\%seen, { '200: a 502, b 200' => 1, '200: b 200' => 1 }, 'one that is gone refuses');
    is(fails('restart'), 1, 'which is a failure');
    $backend{a}->start;
};

subtest 'a kept connection that turns out dead: the same server, by a fresh one' => sub {
    for my $kind (qw(fin rst ipv6 unix)) {
        made($kind);
        is(get("registry/$kind"), "200: $kind 200", "$kind: a first request");
        is(get("registry/$kind"), "200: $kind 502, $kind 200", "$kind: the second, on the dead connection, is sent again");
        is(made($kind), "$kind=2", "$kind: on a new one");
        is(fails($kind), 0, "$kind: no failure is counted");
        is(connections($node, $kind), 0, "$kind: nothing in flight");
    }
    is(scalar($node->grep_log(qr/temporarily disabled/)), 1, 'no server was disabled, but the one that was gone before');

    get('registry/only');
    is(get('registry/only'), '200: fin 502, fin 200', 'the same with an only server');
    get('registry/limited');
    is(get('registry/limited'), '200: fin 502, fin 200', 'with max_conns=1: the dead one takes no room');
    get('registry/two') for 1 .. 2;
    my ($first, $second) = map { get('registry/two') } 1 .. 2;
    is_deeply([ sort $first, $second ], [ '200: fin 502, fin 200', '200: rst 502, rst 200' ],
        'with two servers each has its own requests');
    is(fails('two'), 0, 'no failure of either');
};

subtest 'never in a loop' => sub {
    made('fin');
    my %seen;
    $seen{ get('registry/loop') }++ for 1 .. 24;
    is_deeply([ sort keys %seen ], [ '200: fin 200', '200: fin 502, fin 200' ],
        'a server that closes every kept connection is asked twice at most');
    is(fails('loop'), 0, 'and has no failures');

    # Several at once, so that the pool has several dead ones.
    $backend{fin}->set(delay => 0.1, times => 6);
    my $sum = parallel(6, 6, $node->url('/registry/loop'), keepalive => 0);
    is_deeply($sum->{status}, { 200 => 6 }, 'six requests leave six connections');
    %seen = ();
    $seen{ get('registry/loop') }++ for 1 .. 12;
    is_deeply([ grep { !/^200: (?:fin 502, )?fin 200$/ } keys %seen ], [], 'each of which costs one request one more try');

    is(get('registry/dies'), '200: fin 200', 'a first request');
    $backend{fin}->set(close => 1);
    is(get('registry/dies'), '200: fin 502, fin 502, b 200', 'a fresh connection that fails too is a failure');
    is(fails('dies'), 1, 'and is counted, once');
    is(get('registry/dies'), '200: b 200', 'the server is left alone');
    $backend{fin}->clear;
};

subtest 'what may be sent again is decided as in stock nginx' => sub {
    for my $kind (qw(registry stock)) {
        get("$kind/$_") for qw(post resend off tries);
        my $post = sub { seen($node->post("/$kind/$_[0]", body => 'x=1')) };
        is($post->('post'), '502: fin 502', "$kind: not a POST");
        like($post->('resend'), qr/^200: fin 502, \w+ 200$/, "$kind: a POST with non_idempotent");
        is(get("$kind/off"), '502: fin 502', "$kind: nothing with proxy_next_upstream off");
        like(get("$kind/tries"), qr/^200: fin 502, \w+ 200$/, "$kind: proxy_next_upstream_tries does not count it");
    }
    is(fails($_), 0, "$_: no failure is counted, sent again or not") for qw(post resend off tries);
    my $body = join ' ', 1 .. 20_000;
    my $again = seen($node->client->request('PUT', '/registry/post', body => $body));
    $again = seen($node->client->request('PUT', '/registry/post', body => $body)) if $again eq '200: fin 200';
    is($again, '200: fin 502, fin 200', 'a PUT with a body in a file');
    is($backend{fin}->stats->{last}{body}, $body, 'all of which is sent again');
};

subtest 'a timeout on a kept connection is a failure' => sub {
    get('registry/hangs') for 1 .. 4;
    $backend{a}->set(hang => 1);
    my %seen = map { get('registry/hangs') => 1 } 1 .. 4;
    is_deeply(\%seen, { '200: a 504, b 200' => 1, '200: b 200' => 1 }, 'one request waits for it');
    is(fails('hangs'), 1, 'it is counted');
    $backend{a}->clear;
};

subtest 'in-flight counts with a dead connection under them' => sub {
    my @held = map {
        my $client = $node->client;
        $client->send("GET /registry/fin?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        $client;
    } 1 .. 3;
    ok(wait_until(sub { connections($node, 'fin') == 3 }), 'three in flight');
    my @got = map { get('registry/fin') } 1 .. 6;
    is(scalar(grep { /fin 502, fin 200/ } @got), 3, 'three of six requests find dead connections');
    is(connections($node, 'fin'), 3, 'three in flight, as before');
    $_->close for @held;
    ok(wait_until(sub { connections($node, 'fin') == 0 }), 'none at the end');
};

subtest 'many requests, several workers' => sub {
    my $many = node(workers => 4);
    for my $name (qw(three two)) {
        my $sum = parallel(24, 600, $many->url("/registry/$name"), keepalive => 0, procs => 2);
        is_deeply($sum->{status}, { 200 => 600 }, "$name: all are answered") or diag(explain($sum));
        ok(wait_until(sub { connections($many, $name) == 0 }), "$name: none is in flight at the end");
        my $requests = 0;
        $requests += $_->{fails} for values %{ servers($many, $name) };
        is($requests, 0, "$name: no failure");
    }
    cmp_ok($backend{$_}->stats->{open}, '<=', 4 * 8 * 2, "$_: not more connections are kept than the pools hold") for qw(a b c);
    $many->log_is_clean;
};

$node->log_is_clean;
done_testing;
