# master_process off: one process does it all, and SIGHUP reloads within it.
#
# After that reload stock nginx accepts no new connection in this mode (it gives the new
# cycle no event loop); it goes on serving those that are open. They are what is used here.
# It has closed the log that they write to, too: what the process itself does is still logged.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $TTL = 0.3 * time_scale();
my ($a, $b) = map { RegistryTest->backend(name => $_) } qw(a b);
my $node;

sub configure {
    my ($size, %opt) = @_;
    my $rules = $opt{rules} || 'heartbeat_ttl 1h; cleanup_interval 50ms;';
    $node->set_conf(
        http => $size ? "registry main $size { $rules } upstream backend { registry main; " . ($opt{members} || '') . ' }' : '',
        server => $size
            ? 'location /upstream/ { registry_api main; } location / { proxy_pass http://backend; }'
            : 'location / { return 200 "none\n"; }',
    );
    return $node;
}
# A node of its own for each story, since each ends with a reload.
sub fresh {
    $node = RegistryTest->nginx(master => 0, start => 0);
    return configure('512k', @_)->start;
}
sub add { my ($backend, %more) = @_; return api($node, 'add', { host => $backend->host, port => $backend->port, %more }) }
sub slow {
    my ($count, $seconds) = @_;
    return map {
        my $client = $node->client;
        $client->send("GET /?delay=$seconds HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        $client;
    } 1 .. $count;
}
# A connection with a request begun: nginx does not close it to make room for others.
sub begun {
    my ($method, $path, $fields) = @_;
    my $client = $node->client;
    my $body = $fields ? form($fields) : '';
    my $request = "$method $path HTTP/1.1\r\nHost: x\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
    $client->send(substr $request, 0, 9, '');
    return [ $client, $request ];
}
sub finish { my ($client, $rest) = @{ $_[0] }; $client->send($rest); return $client->response }
# SIGHUP; returns when it has been obeyed.
sub hup {
    my $from = $node->log_size;
    $node->signal('HUP');
    return unless $node->wait_log(qr/reconfiguring$/, 5, $from);
    # The last line of a reload of this kind is the event method's.
    return $node->wait_log(qr/using the "\w+" event method/, 5, $from);
}
# What status says of connections when it is asked on a connection that was begun before.
sub counted { my ($begun) = @_; my $json = finish($begun)->{json}; return $json ? "@{[ map { $_->{connections} } @{ $json->{data} } ]}" : 'no answer' }

subtest 'a registry works' => sub {
    fresh(rules => 'heartbeat_ttl ' . 1000 * $TTL . 'ms; cleanup_interval 50ms;');
    add($_) for $a, $b;
    my $sum = parallel(10, 200, $node->url('/?delay=0.01'));
    # The TTL may end while it runs: heartbeats are another subtest's.
    ok($sum->{status}{200} && $sum->{failed} == 0, 'requests are answered');
    ok(wait_until(sub { connections($node) == 0 }), 'and counted off');
    add($a);
    my $load = load_start(conns => 4, url => $node->url('/?delay=0.05'), abort_share => 0.5, abort_after => 0.01);
    sleep 0.1;
    load_stop($load);
    ok(wait_until(sub { connections($node) == 0 }), 'those that clients gave up as well');
    ok(wait_until(sub { !grep { $_->{enabled} } @{ status($node)->{data} } }), 'the timer disables the silent');
    is(add($a)->{json}{data}{enabled}, JSON::PP::true(), 'a heartbeat brings a server back');
    ok($node->quit, 'it quits');
    $node->log_is_clean;
};

subtest 'a reload keeps servers, and counts of requests under way' => sub {
    fresh();
    add($_) for $a, $b;
    my @slow = slow(4, 1);
    ok(wait_until(sub { connections($node) == 4 }), 'four requests');
    my @status = map { begun(GET => '/upstream/status') } 1 .. 2;
    my $add = begun(POST => '/upstream/add', { host => '127.0.0.9', port => 9, weight => 0 });
    my $get = begun(GET => '/');
    sleep 0.1;
    ok(hup(), 'a reload');
    is(counted($status[0]), '2 2', 'they are counted still');
    is(finish($add)->{status}, 200, 'a server can be added');
    is(finish($get)->{status}, 200, 'a request be made');
    is(join(' ', map { $_->response->{status} } @slow), '200 200 200 200', 'those under way are answered');
    is(counted($status[1]), '0 0 0', 'and counted off');
    ok($node->quit, 'it quits');
    $node->log_is_clean;
};

subtest 'the timer goes on, by the new settings' => sub {
    fresh();
    add($_) for $a, $b;
    my $status = begun(GET => '/upstream/status');
    sleep 0.1;
    my $from = $node->log_size;
    configure('512k', rules => 'heartbeat_ttl ' . 1000 * $TTL . 'ms; cleanup_interval 50ms; on_expire remove;');
    ok(hup(), 'a reload with a short TTL and on_expire remove');
    ok($node->wait_log(qr/cleanup: 0 disabled, \d removed/, 5, $from), 'the timer removes the silent');
    wait_until(sub { $node->grep_log(qr/server \S+ removed/, $from) == 2 });
    is(finish($status)->{json}{total}, 0, 'none is left');
    is(scalar($node->grep_log(qr/server \S+ removed/, $from)), 2, 'each was removed once');
    ok($node->quit, 'it quits');
    $node->log_is_clean;
};

subtest 'members come and go' => sub {
    fresh(members => 'server ' . $a->address . ';');
    my ($get, $status) = (begun(GET => '/'), begun(GET => '/upstream/status'));
    sleep 0.1;
    configure('512k', members => 'server ' . $b->address . ' weight=3;');
    ok(hup(), 'a reload with another member');
    is(finish($status)->{json}{data}[0]{weight}, 3, 'status knows it');
    # The connection to the server takes the place of the one that has just ended.
    is(finish($get)->{headers}{'x-backend'}, 'b', 'and requests go to it');
    ok($node->quit, 'it quits');
    $node->log_is_clean;
};

for my $case ([ '1m', 'another size' ], [ undef, 'no registry' ]) {
    my ($size, $what) = @$case;
    subtest "a reload with $what under requests" => sub {
        fresh();
        add($_) for $a, $b;
        my @slow = slow(4, 0.6);
        ok(wait_until(sub { connections($node) == 4 }), 'four requests');
        my @aborted = slow(2, 5);
        ok(wait_until(sub { connections($node) == 6 }), 'two more, to be given up');
        my $add = begun(POST => '/upstream/add', { host => '127.0.0.9', port => 9 });
        my $status = begun(GET => '/upstream/status');
        my $get = begun(GET => '/');
        sleep 0.1;
        my $from = $node->log_size;
        configure($size);
        ok(hup(), 'a reload');
        $node->wait_log(qr/2 servers moved to the new zone/, undef, $from) if $size;
        is(scalar($node->grep_log(qr/2 servers moved to the new zone/, $from)), $size ? 1 : 0, 'servers move when there is where to');
        $_->close for @aborted;
        is(join(' ', map { $_->response->{status} } @slow), '200 200 200 200', 'requests under way are answered');
        my $reply = finish($add);
        like($reply->{status}, qr/^50[03]$/, 'a change by the old configuration is refused');
        is($reply->{json}{code}, $reply->{status}, 'in JSON') or diag($reply->{body});
        $reply = finish($status);
        is($reply->{json}{code}, $reply->{status}, 'a question is answered in JSON') or diag($reply->{body});
        like(finish($get)->{status}, qr/^50[0-4]$/, 'a request that begins only now is told that it cannot be');
        sleep 0.2;    # some turns of the new timer
        ok($node->running, 'the process is there');
        ok($node->quit, 'and quits');
        $node->log_is_clean;
    };
}

subtest 'many reloads, with sizes back and forth' => sub {
    fresh();
    add($_) for $a, $b;
    my @status = map { begun(GET => '/upstream/status') } 1 .. 2;
    sleep 0.1;
    for my $size (qw(512k 1m 512k 512k 256k 1m)) {
        configure($size);
        ok(hup(), "a reload with $size");
    }
    is(scalar($node->grep_log(qr/2 servers moved to the new zone/)), 4, 'the servers moved as often as the size changed');
    ok($node->quit, 'it quits');
    $node->log_is_clean;
};

done_testing;
