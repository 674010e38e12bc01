# connect_timeout, send_timeout and read_timeout that a server says when it registers: for requests to it
# alone, whatever the location says; and health_path beside them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::INET;
use RegistryTest;

my $S = time_scale();
sub ms { return int($_[0] * 1000 * $S) . 'ms' }

my @spaces = qw(alone next back short retry others connect send kept stock fastcgi changed);
my ($upstreams, $locations) = ('', '');
for my $name (@spaces) {
    my $keep = $name eq 'kept' ? 'registry_keepalive 8;' : $name eq 'stock' ? 'keepalive 8;' : '';
    $upstreams .= "upstream $name { registry main; registry_balance round_robin; $keep }\n";
    my $pass = $name eq 'fastcgi' ? 'fastcgi_param REQUEST_URI $request_uri; fastcgi_pass' : 'proxy_pass http://';
    $pass .= $name eq 'fastcgi' ? " $name;" : "$name;";
    $locations .= "location = /$name { $pass }\n";
}
my $node = RegistryTest->nginx(
    workers => 1,
    http => "registry main 256k { heartbeat_ttl 1h; state_file main.json; }\n$upstreams",
    server => qq{
        location /upstream/ { registry_api main; }
        add_header X-Addr \$upstream_addr always;
        add_header X-Status \$upstream_status always;
        client_max_body_size 0;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_connect_timeout ${\ ms(20)};
        proxy_read_timeout ${\ ms(20)};
        proxy_send_timeout ${\ ms(20)};
        $locations
        location = /half { proxy_pass http://short; proxy_read_timeout ${\ ms(0.8)}; }
    },
);
my %backend = map { $_ => RegistryTest->backend(name => $_) } qw(slow other);
my %name = map { $backend{$_}->address => $_ } keys %backend;

sub call {
    my ($endpoint, $space, $server, %more) = @_;
    my $r = api($node, $endpoint, { ns => $space, host => $server->host, port => $server->port, %more });
    die "$endpoint: $r->{body}\n" unless $r->{status} == 200;
    return $r->{json}{data};
}
# max_fails=0: each request is to find both servers.
sub add { my ($space, $name, %more) = @_; return call(add => $space, $backend{$name}, max_fails => 0, %more) }

# "status: server status, server status"
sub seen {
    my ($r) = @_;
    my @addresses = split /, /, $r->{headers}{'x-addr'};
    my @statuses = split /, /, $r->{headers}{'x-status'};
    return "$r->{status}: " . join ', ', map { ($name{ $addresses[$_] } || $addresses[$_]) . " $statuses[$_]" } 0 .. $#statuses;
}
# One test: it took so many seconds, and hardly more.
sub took {
    my ($r, $seconds, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $ok = $r->{time} >= 0.98 * $seconds * $S && $r->{time} < ($seconds + 0.5) * $S;
    return ok($ok, $name) || diag("$r->{time} s, not ", $seconds * $S);
}

subtest 'a server that does not answer in its read_timeout' => sub {
    add('alone', 'slow', read_timeout => ms(0.3));
    my $r = $node->get('/alone?hang=1');
    is(seen($r), '504: slow 504', 'has timed out');
    took($r, 0.3, 'after its own time');
    is($node->get('/alone?delay=' . 0.1 * $S)->{status}, 200, 'one that comes sooner is passed on');
    # Between two reads, not in all; nginx moves a timer by 300 ms or more alone.
    add('alone', 'slow', read_timeout => ms(0.8));
    $r = $node->get('/alone?size=50000&drip=' . 1.5 * $S);
    is($r->{status} . ' ' . length $r->{body}, '200 50000', 'as is one that goes on coming');
    add('alone', 'slow', read_timeout => ms(0.3));
};

subtest 'is followed by the next, which has its own' => sub {
    add('next', 'slow', read_timeout => ms(0.2));
    add('next', 'other');
    $backend{slow}->set(hang => 1);
    my $r = $node->get('/next');
    is(seen($r), '200: slow 504, other 200', 'the next one answers');
    took($r, 0.2, 'soon');
    $backend{slow}->clear;
};

subtest 'after a short one comes the time of the location' => sub {
    add('back', 'slow', read_timeout => ms(0.2));
    add('back', 'other');
    $backend{slow}->set(hang => 1);
    $backend{other}->set(delay => 0.7 * $S);
    my $r = $node->get('/back');
    is(seen($r), '200: slow 504, other 200', 'one that takes longer answers');
    took($r, 0.9, 'in the end');

    add('short', 'slow', read_timeout => ms(0.2));
    add('short', 'other');
    $backend{other}->set(hang => 1);
    $r = $node->get('/half');
    is(seen($r), '504: slow 504, other 504', 'one that takes too long does not');
    took($r, 1, 'and has waited for the whole time of the location');
    $_->clear for values %backend;
};

subtest 'after one comes another' => sub {
    add('retry', 'slow', read_timeout => ms(0.2));
    add('retry', 'other', read_timeout => ms(0.6));
    $_->set(hang => 1) for values %backend;
    my $r = $node->get('/retry');
    is(seen($r), '504: slow 504, other 504', 'both time out');
    took($r, 0.8, 'each after its own time');
    $_->clear for values %backend;
};

subtest 'requests to others know nothing of it' => sub {
    add('others', 'other');
    my $client = $node->client(timeout => 30 * $S);
    $client->send("GET /others?delay=@{[ 0.8 * $S ]} HTTP/1.1\r\nHost: x\r\n\r\n");
    is($node->get('/alone?hang=1')->{status}, 504, 'while a short one times out');
    is($client->response->{status}, 200, 'a long one goes on');
};

subtest 'connect_timeout' => sub {
    # Its backlog is full: the kernel answers nobody.
    my $full = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', ReuseAddr => 1) or die "listen: $!";
    my $deaf = RegistryTest->backend(name => 'deaf', start => 0);
    my @waiting = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $full->sockport, Blocking => 0) } 1 .. 8;
    my $add = sub { api($node, add => { ns => 'connect', host => '127.0.0.1', port => $full->sockport, max_fails => 0, @_ }) };
    $add->(connect_timeout => ms(0.3), read_timeout => ms(5));
    my $r = $node->get('/connect');
    is($r->{status}, 504, 'a server that can not be reached');
    took($r, 0.3, 'is given up after its own time');
    add('connect', 'other');
    $r = $node->get('/connect');
    is($r->{status}, 200, 'and the next one asked');
    close $_ for @waiting;
};

subtest 'send_timeout' => sub {
    my $deaf = RegistryTest->backend(name => 'deaf');
    call(add => 'send', $deaf, max_fails => 0, send_timeout => ms(0.3));
    # The kernel takes what its buffers hold, and nobody reads it.
    $deaf->pause;
    my $r = RegistryTest::Client::http('PUT', $node->url('/send'), body => 'x' x 30_000_000, timeout => 30 * $S);
    is($r->{status}, 504, 'a server that takes no more of a body is given up');
    cmp_ok($r->{time}, '<', 10 * $S, 'after its own time');
    $deaf->resume;
};

for my $pool (qw(kept stock)) {
    subtest $pool eq 'kept' ? 'registry_keepalive' : 'stock keepalive' => sub {
        add($pool, 'slow', read_timeout => ms(0.3));
        my $connections = $backend{slow}->stats->{connections};
        is($node->get("/$pool")->{status}, 200, 'a request');
        sleep 0.1 * $S;
        is($node->get("/$pool")->{status}, 200, 'and another');
        is($backend{slow}->stats->{connections}, $connections + 1, 'on its connection');
        my $r = $node->get("/$pool?hang=1");
        is($r->{status}, 504, 'there too a server has its own time');
        took($r, 0.3, 'the whole of it');
        add($pool, 'slow', read_timeout => 0);
        is($node->get("/$pool?delay=" . 0.6 * $S)->{status}, 200, '0: again that of the location') for 1, 2;
    };
}

subtest 'FastCGI' => sub {
    add('fastcgi', 'slow', read_timeout => ms(0.3));
    is($node->get('/fastcgi')->{status}, 200, 'a request');
    my $r = $node->get('/fastcgi?hang=1');
    is($r->{status}, 504, 'one without an answer');
    took($r, 0.3, 'times out likewise');
};

subtest 'what is not said stays, over a reload and a restart too' => sub {
    my $hangs = sub { my $r = $node->get('/changed?hang=1'); is($r->{status}, 504, $_[0]); return took($r, 0.4, 'at its time') };
    add('changed', 'slow', read_timeout => ms(0.4), connect_timeout => '1m', health_path => '/live?x=1');
    add('changed', 'slow', weight => 2);
    call(refresh => 'changed', $backend{slow});
    $hangs->('heartbeats that say nothing');
    ok($node->reload, 'a reload');
    $hangs->('changes nothing');
    ok($node->quit, 'nginx ends');
    my $line = (grep { /"namespace":"changed"/ } split /\n/, slurp($node->dir . '/main.json'))[0];
    like($line, qr/"max_fails":0,"connect_timeout_ms":60000,"read_timeout_ms":${\ int(400 * $S)},"health_path":"\/live\?x=1",/, 'the state file has them');
    $node->start;
    $hangs->('a restart');
    add('changed', 'slow', read_timeout => 0, connect_timeout => 0, health_path => '');
    is($node->get('/changed?delay=' . 0.8 * $S)->{status}, 200, 'taken back, it is as the location says');
    ok($node->quit, 'nginx ends');
    $line = (grep { /"namespace":"changed"/ } split /\n/, slurp($node->dir . '/main.json'))[0];
    unlike($line, qr/timeout|health_path/, 'and the state file has them no more');
    $node->start;
};

subtest 'what is refused' => sub {
    my $message = sub { api($node, add => { ns => 'alone', host => $backend{slow}->host, port => $backend{slow}->port, @_ })->{json} };
    for my $name (qw(connect_timeout send_timeout read_timeout)) {
        is_deeply($message->($name => $_), { code => 400,
            message => "Parameter \"$name\" must be a time of at most 1d, written as 30s, 500ms or 1m 30s" }, "$name \"$_\"")
            for '', 'never', '25h', -1;
    }
    is_deeply($message->(health_path => $_), { code => 400,
        message => 'Parameter "health_path" must be a path that begins with "/", of at most 48 printable ASCII characters and neither space nor "#", or empty' },
        "health_path \"$_\"") for 'live', '/a b', "/a\r\nX: y", '/' . 'x' x 48, "/\xe4";
    my $r = api_json($node, add => { ns => 'alone', host => $backend{slow}->host, port => $backend{slow}->port, read_timeout => 2, health_path => '/' . 'x' x 47 });
    is($r->{status}, 200, 'as JSON');
};

$node->log_is_clean;
done_testing;
