# Kept connections of servers that take no requests any more are closed, whichever worker
# keeps them; and those that a server closes cost nobody a request.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/keepalive-backend.pl";

my $TTL = 600 * time_scale();    # milliseconds
my %backend = (
    (map { $_ => NumberedBackend->new(name => $_) } qw(a b c)),
    fin => NumberedBackend->new(name => 'fin', close_idle => 'fin'),
    rst => NumberedBackend->new(name => 'rst', close_idle => 'rst'),
    unix => NumberedBackend->new(name => 'unix', host => 'unix', close_idle => 'fin'),
);
my %name = map { $backend{$_}->address => $_ } keys %backend;

# name => [ servers, further lines of the location ]
my %upstreams = (
    registered => [ '' ],
    static     => [ 'a' ],
    leaves     => [ 'a' ],
    restart    => [ 'c b:backup' ],
    fin        => [ 'fin b:backup' ],
    rst        => [ 'rst b:backup' ],
    unix       => [ 'unix b:backup' ],
    only       => [ 'fin' ],
    limited    => [ 'fin:max_conns=1 b:backup' ],
    off        => [ 'fin:max_fails=0 b:backup', 'proxy_next_upstream off;' ],
    tries      => [ 'fin:max_fails=0 b:backup', 'proxy_next_upstream_tries 1;' ],
    post       => [ 'fin:max_fails=0 b:backup' ],
    resend     => [ 'fin:max_fails=0 b:backup', 'proxy_next_upstream error non_idempotent;' ],
    unbuffered => [ 'fin:max_fails=0 b:backup', 'proxy_request_buffering off;' ],
    dies       => [ 'fin b:backup' ],
    hangs      => [ 'a b:backup', 'proxy_read_timeout 300ms;' ],
);
my ($http, $server) = ('registry main 256k { heartbeat_ttl 1h; } '
    . "registry short 256k { heartbeat_ttl ${TTL}ms; cleanup_interval 50ms; }"
    . 'upstream expires { registry short; registry_keepalive 8; }', '');
for my $name (sort keys %upstreams) {
    my ($list, $directives) = @{ $upstreams{$name} };
    my $servers = join ' ', map {
        my ($of, $more) = split /:/;
        'server ' . $backend{$of}->address . ' ' . ($more || '') . ';';
    } split / /, $list;
    $http .= "upstream registry_$name { registry main namespace=$name; registry_balance round_robin; $servers registry_keepalive 8; }\n";
    $http .= "upstream stock_$name { $servers keepalive 8; }\n" if $servers;
    $server .= "location = /$_/$name { proxy_pass http://${_}_$name; " . ($directives || '') . " }\n"
        for 'registry', $servers ? 'stock' : ();
}
my %node = map {
    my $workers = $_;
    ($workers => RegistryTest->nginx(
        workers => $workers, http => $http, server => qq{
            location /upstream/ { registry_api main; }
            location /short/ { registry_api short; }
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            add_header X-Addr \$upstream_addr always;
            add_header X-Status \$upstream_status always;
            $server
            location = /expires { proxy_pass http://expires; }
        },
    ));
} 1, 2;
our $node = $node{1};

# "status: server status, server status"
sub seen {
    my ($r) = @_;
    my @addresses = split /, /, $r->{headers}{'x-addr'};
    my @statuses = split /, /, $r->{headers}{'x-status'};
    return "$r->{status}: " . join ', ', map { ($name{ $addresses[$_] } || $addresses[$_]) . " $statuses[$_]" } 0 .. $#addresses;
}
sub get { return seen($node->get("/$_[0]")) }
sub fails { my ($ns) = @_; my $n = 0; $n += $_->{fails} for values %{ servers($node, $ns) }; return $n }
sub call {
    my ($endpoint, $backend, %more) = @_;
    return api($node, $endpoint, { ns => 'registered', host => $backend->host, port => $backend->port, %more })->{status};
}
# How many connections the backend has open when they are none, or after half a second and a bit.
sub left { my ($backend) = @_; return open_at($backend, 0, 0.5 + 0.4 * time_scale()) }

my %ways = (
    removed   => [ sub { call('remove', @_) }, sub { call('add', @_) } ],
    disabled  => [ sub { call('toggle', @_, action => 'disable') }, sub { call('toggle', @_, action => 'enable') } ],
    draining  => [ sub { call('drain', @_) }, sub { call('toggle', @_, action => 'enable') } ],
);
for my $way (sort keys %ways) {
    my ($out, $back) = @{ $ways{$way} };
    subtest "a server that is $way" => sub {
        my $a = NumberedBackend->new(name => $way);
        my $stays = NumberedBackend->new(name => 'stays');
        call('add', $_) for $a, $stays;
        at_once($node, 6, '/registry/registered');
        is(open_at($a, 3), 3, 'three connections are kept to it');
        is(open_at($stays, 3), 3, 'and to another');
        is($out->($a), 200, "it is $way");
        is(left($a), 0, 'they are closed');
        is($stays->stats->{open}, 3, 'those to the other are not');
        is($back->($a), 200, 'it is back');
        my ($r) = grep { $_->{headers}{'x-backend'} eq $way } map { $node->get('/registry/registered') } 1 .. 2;
        is(number($r), '4.1', 'and gets new ones');
        call('remove', $_) for $a, $stays;
        nothing_in_flight($node, 'registered');
    };

    subtest "one that is $way while a request is on it" => sub {
        my $a = NumberedBackend->new(name => $way);
        call('add', $a);
        my $client = $node->client;
        # Longer than workers take to hear of it: nobody comes to close the connection later.
        my $delay = 0.5 + 0.2 * time_scale();
        $client->send("GET /registry/registered?delay=$delay HTTP/1.1\r\nHost: x\r\n\r\n");
        ok(wait_until(sub { connections($node, 'registered') == 1 }), 'a request');
        $out->($a);
        is(number($client->response), '1.1', 'that is answered');
        is(open_at($a, 0, 0.2 * time_scale()), 0, 'its connection is not kept');
        # Out and back again while it runs: the connection is one to the server that is back, or to none.
        $back->($a);
        $client->send("GET /registry/registered?delay=0.3 HTTP/1.1\r\nHost: x\r\n\r\n");
        ok(wait_until(sub { connections($node, 'registered') == 1 }), 'another request');
        $out->($a);
        $back->($a);
        is(number($client->response), '2.1', 'that is answered');
        is(number($node->get('/registry/registered')), $way eq 'removed' ? '3.1' : '2.2',
            $way eq 'removed' ? 'a server that registers again is another one' : 'is the same when it is back in time');
        call('remove', $a);
        nothing_in_flight($node, 'registered');
    };
}

subtest 'by a call that another worker serves' => sub {
    local $node = $node{2};
    my $a = NumberedBackend->new(name => 'a');
    call('add', $a);
    my $kept = sub {
        my $sum = parallel(16, 160, $node->url('/registry/registered?delay=0.01'), keepalive => 0);
        is_deeply($sum->{status}, { 200 => 160 }, 'requests');
        cmp_ok($a->stats->{open}, '>', 0, 'leave connections in the workers');
    };
    for my $way (sort keys %ways) {
        my ($out, $back) = @{ $ways{$way} };
        $kept->();
        $out->($a);
        is(left($a), 0, "$way: all are closed, those of the worker that was not asked too");
        $back->($a);
    }
    $a->stop;
    call('remove', $a);
};

subtest 'one that expires' => sub {
    my $a = NumberedBackend->new(name => 'a');
    my $beat = sub { $node->post("/short/$_[0]", body => form({ ns => 'expires', host => $a->host, port => $a->port })) };
    $beat->('add');
    is(number($node->get('/expires')), '1.1', 'a connection');
    is($a->stats->{open}, 1, 'is kept');
    is(open_at($a, 0, $TTL / 1000 + 0.05 + 0.5 + 0.4 * time_scale()), 0, 'until its heartbeats have been missed');
    is($node->get('/expires')->{status}, 502, 'when it gets no requests');
    $beat->('refresh');
    is(number($node->get('/expires')), '2.1', 'back again it gets a new one');
};

subtest 'a server in the place of another' => sub {
    # A slot of the zone that was freed is the next to be used.
    my ($old, $new) = map { NumberedBackend->new(name => $_) } qw(old new);
    for (1 .. 3) {
        call('add', $old);
        like(seen($node->get('/registry/registered')), qr/^200/, 'a connection to the one');
        call('remove', $old);
        call('add', $new);
        my $r = $node->get('/registry/registered');
        is($r->{headers}{'x-backend'}, 'new', 'at once a request for the other');
        like(number($r), qr/\.1$/, 'on a connection of its own');
        call('remove', $new);
    }
    is(left($_), 0, 'all are closed') for $old, $new;
    # The very address again.
    call('add', $old);
    my $first = number($node->get('/registry/registered'));
    call('remove', $old);
    call('add', $old);
    isnt((split /\./, number($node->get('/registry/registered')))[0], (split /\./, $first)[0], 'removed and added again it is another server');
    call('remove', $old);
};

subtest 'a static member' => sub {
    my %a = (ns => 'static', host => $backend{a}->host, port => $backend{a}->port);
    my $before = open_at($backend{a}, 0);
    get('registry/static');
    is($backend{a}->stats->{open}, $before + 1, 'has a connection');
    api($node, toggle => { %a, action => 'disable' });
    is(open_at($backend{a}, $before, 0.5 + 0.4 * time_scale()), $before, 'that is closed when it is disabled');
    api($node, toggle => { %a, action => 'enable' });
    is(get('registry/static'), '200: a 200', 'enabled it is back');
};

subtest 'an idle connection that its server closes' => sub {
    for my $kind (qw(registry stock)) {
        my $open = $backend{a}->stats->{open};
        my $first = number($node->get("/$kind/leaves?leave=0.05"));
        is(open_at($backend{a}, $open), $open, "$kind: closed");
        my $r = $node->get("/$kind/leaves");
        is(seen($r), '200: a 200', 'the next request is answered by the first try');
        is(number($r), int($first) + 1 . '.1', 'on another connection');
        get("$kind/restart");
        $backend{c}->stop;
        $backend{c}->start;
        is(get("$kind/restart"), '200: c 200', 'nor does a server that was started again cost a try');
    }
    is(fails($_), 0, "$_: no failure is counted") for qw(leaves restart);
};

subtest 'closed just when the request is sent: the same server, by a fresh one' => sub {
    for my $kind (qw(fin rst unix)) {
        my $before = $backend{$kind}->stats->{connections};
        is(get("registry/$kind"), "200: $kind 200", "$kind: a first request");
        is(get("registry/$kind"), "200: $kind 502, $kind 200", "$kind: the second, on the dead connection, is sent again");
        is($backend{$kind}->stats->{connections} - $before, 2, "$kind: on a new one");
    }
    is(scalar($node->grep_log(qr/temporarily disabled/)), 0, 'no server was disabled');
    get('registry/only');
    is(get('registry/only'), '200: fin 502, fin 200', 'the same with an only server');
    get('registry/limited');
    is(get('registry/limited'), '200: fin 502, fin 200', 'with max_conns=1: the dead one takes no room');
    is(fails($_), 0, "$_: no failure is counted") for qw(fin rst unix only limited);
};

subtest 'never in a loop' => sub {
    at_once($node, 6, '/registry/fin');
    my %seen;
    $seen{ get('registry/fin') }++ for 1 .. 12;
    is_deeply(\%seen, { '200: fin 502, fin 200' => 12 }, 'with many dead ones kept each request finds one and makes one');
    is(fails('fin'), 0, 'and there are no failures');

    is(get('registry/dies'), '200: fin 200', 'a first request');
    $backend{fin}->set(close => 1);
    is(get('registry/dies'), '200: fin 502, fin 502, b 200', 'a fresh connection that fails too is a failure');
    is(fails('dies'), 1, 'and is counted, once');
    is(get('registry/dies'), '200: b 200', 'the server is left alone');
    $backend{fin}->clear;
};

# What stock keepalive does with its own address as the only one that is not a backup: it goes to
# the backup. The rule whether to send again is the same.
subtest 'what may be sent again is decided as with stock keepalive' => sub {
    for my $kind (qw(registry stock)) {
        get("$kind/$_") for qw(off tries);
        is(get("$kind/off"), '502: fin 502', "$kind: nothing with proxy_next_upstream off");
        like(get("$kind/tries"), qr/^200: fin 502, \w+ 200$/, "$kind: proxy_next_upstream_tries does not count it");
        my $send = sub {
            my ($method, $path, $body) = @_;
            get("$kind/$path");
            return seen($node->client->request($method, "/$kind/$path", body => $body, close => 1));
        };
        is($send->(POST => 'post', 'x=1'), '502: fin 502', "$kind: not a POST");
        is($send->(PATCH => 'post', 'x=1'), '502: fin 502', "$kind: nor another method that is not idempotent");
        like($send->(POST => 'resend', 'x=1'), qr/^200: fin 502, \w+ 200$/, "$kind: a POST with non_idempotent");
        get("$kind/unbuffered");
        my $unbuffered = seen($node->client->request('PUT', "/$kind/unbuffered", body => 'x' x 10, close => 1));
        ok($unbuffered eq '502: fin 502' || $unbuffered =~ /^200: fin 502, \w+ 200$/, "$kind: a PUT that is not buffered") or diag($unbuffered);
    }
    my $body = join ' ', 1 .. 20_000;
    get('registry/post');
    is(seen($node->client->request('PUT', '/registry/post', body => $body)), '200: fin 502, fin 200', 'a PUT with a body in a file');
    is($backend{fin}->stats->{last}{body}, $body, 'all of which is sent again');
    is(fails($_), 0, "$_: no failure is counted, sent again or not") for qw(off tries post resend unbuffered);
};

subtest 'a timeout on a kept connection is a failure' => sub {
    get('registry/hangs');
    $backend{a}->set(hang => 1, times => 1);
    is(get('registry/hangs'), '200: a 504, b 200', 'the next server');
    is(fails('hangs'), 1, 'it is counted');
    $backend{a}->clear;
};

nothing_in_flight($node, sort keys %upstreams);
$_->log_is_clean for values %node;
done_testing;
