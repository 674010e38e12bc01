# Many servers; servers that go while they are checked; no connection left to check with.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my $COUNT = 200;
my $PERIOD = 1 * time_scale();

subtest '200 servers' => sub {
    my $probed = RegistryTest->probed(count => $COUNT);
    $node = checked({ main => { check => [ 'interval=' . ms(1), 'fails=1', 'passes=1' ], size => '1m' } });
    my $start = time;
    my $client = $node->client;
    for my $i (0 .. $COUNT - 1) {
        my $r = $client->post('/main/add', body => form({ host => '127.0.0.1', port => $probed->port($i) }),
            headers => { 'Content-Type' => 'application/x-www-form-urlencoded' });
        die "$r->{status} $r->{body}" if $r->{status} != 200;
    }
    ok(wait_until(sub { !grep { $_ == 0 } $probed->counts }, 5 * $PERIOD), 'all are checked');
    sleep $PERIOD;
    my ($from, $since) = ($probed->count, time);
    my @used = map { used($_) } $node->workers;
    sleep 4 * $PERIOD;
    my @log = $probed->log($from);
    my @spent = map { used(($node->workers)[$_]) - $used[$_] } 0 .. 1;
    my $expected = $COUNT * (time - $since) / $PERIOD;
    ok(@log > 0.85 * $expected && @log < 1.15 * $expected, @log . ' checks in four intervals');
    my %slots;
    $slots{ int(($_->{begun} - $since) / ($PERIOD / 10)) }++ for @log;
    my ($most) = sort { $b <=> $a } values %slots;
    cmp_ok($most, '<=', $COUNT / 4, "in a tenth of an interval $most of $COUNT at most");
    note(sprintf 'processor time of the workers in four seconds: %.2f and %.2f s', @spent);
    cmp_ok($_, '<', 2 * $PERIOD, 'the workers hardly work') for @spent;
    local $node->{api} = '/main/';
    # Those that are under way were seen by the server and not counted yet.
    my ($counted, $seen) = (0, scalar $probed->count);
    $counted += $_->{health}{checks} for values %{ servers($node, 'main') };
    cmp_ok(abs($counted - $seen), '<=', 20, "each of the $seen connections was a check that counts ($counted)");
    $probed->behave('status 503', 0 .. $COUNT / 2 - 1);
    ok(wait_until(sub { $COUNT / 2 == grep { $_->{state} eq 'unhealthy' } values %{ servers($node, 'main') } }, 4 * $PERIOD), 'half of them fail');
    my %by;
    $by{ $node->get('/to/main')->{status} }++ for 1 .. 100;
    is(join(' ', %by), '200 100', 'no request goes to these');
    $node->log_is_clean;
    $node->quit;
};

subtest 'removed while it is checked' => sub {
    my $probed = RegistryTest->probed;
    $node = checked({ main => [ 'fails=1', 'passes=1', 'timeout=' . ms(2) ] });
    my $bad = [ 'read', [ wait => 0.3 * time_scale() ], [ send => "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n" ], 'close' ];
    for my $round (1 .. 3) {
        # The first check of each fails, but late; the server that comes after it is another.
        $probed->behave($bad);
        my $count = $probed->count;
        call('main', add => $probed);
        ok(wait_until(sub { $probed->count > $count }), 'a check is under way');
        $probed->behave('ok');
        is(call('main', remove => $probed)->{status}, 200, 'the server is removed');
        is(call('main', add => $probed)->{status}, 200, 'and added again');
        sleep 0.5 * time_scale();
        my $health = after_checks('main', $probed, 2);
        is($health->{fails}, 0, 'what the other was told is none of its business');
        is(state('main', $probed), 'up', 'it is up');
        call('main', remove => $probed);
    }
    is(scalar($node->grep_log(qr/unhealthy/)), 0, 'nobody was unhealthy');

    # Without coming back.
    $probed->behave('silent');
    my $count = $probed->count;
    call('main', add => $probed);
    ok(wait_until(sub { $probed->count > $count }), 'a check is under way');
    call('main', remove => $probed);
    ok(wait_until(sub { !grep { !$_->{ended} } $probed->log }, 5 * time_scale()), 'its connection ends');
    $count = $probed->count;
    sleep 3 * $INTERVAL;
    is($probed->count, $count, 'and no other begins');

    # By a reload that takes its line away.
    $probed->behave('after ' . 0.3 * time_scale());
    $node->set_conf(http => "$node->{http} upstream lines { registry main; server ${\ $probed->address}; }");
    ok($node->reload, 'a server line comes');
    ok(wait_until(sub { $probed->count > $count }), 'and is checked');
    (my $http = $node->{http}) =~ s/upstream lines \{.*?\}//;
    $node->set_conf(http => $http);
    ok($node->reload, 'and goes');
    ok(wait_until(sub { !grep { !$_->{ended} } $probed->log }), 'its connection ends');
    $count = $probed->count;
    sleep 3 * $INTERVAL;
    is($probed->count, $count, 'no other begins');
    $node->log_is_clean;
    $node->quit;
};

subtest 'coming and going all the time' => sub {
    my $probed = RegistryTest->probed(count => 20, how => 'after 0.02');
    $node = checked({ main => [ 'interval=10ms', 'fails=1', 'passes=1' ] });
    # A worker that has answered has opened all that it opens once.
    slowest(0.2 * time_scale());
    my @open = map { descriptors($_) } $node->workers;
    my $client = $node->client;
    for my $round (1 .. 600) {
        my $i = $round % 20;
        my $endpoint = int($round / 20) % 2 ? 'remove' : 'add';
        $client->post("/main/$endpoint", body => form({ host => '127.0.0.1', port => $probed->port($i) }));
    }
    call('main', remove => $probed->address($_)) for 0 .. 19;
    ok(wait_until(sub { !grep { !$_->{ended} } $probed->log }), 'in the end no connection is left');
    cmp_ok($probed->count, '>', 50, 'of ' . $probed->count);
    $client->close;
    my @workers = $node->workers;
    ok(wait_until(sub { !grep { descriptors($workers[$_]) > $open[$_] } 0 .. $#workers }), 'nor a descriptor')
        or diag(join ' ', map { "$open[$_], then " . descriptors($workers[$_]) } 0 .. $#workers);
    is(scalar($node->grep_log(qr/unhealthy/)), 0, 'nobody was unhealthy');
    $node->log_is_clean;
    $node->quit;
};

subtest 'no connection is left to check with' => sub {
    my $slow = RegistryTest->backend(name => 'slow');
    my $probed = RegistryTest->probed(count => 5);
    $node = checked({ main => [ 'fails=1', 'passes=1' ] }, workers => 1, worker_connections => 24,
        http => "upstream slow { server ${\ $slow->address}; }", server => 'location /slow { proxy_pass http://slow; }');
    call('main', add => $probed->address($_)) for 0 .. 4;
    after_checks('main', $probed->address($_), 2) for 0 .. 4;
    my ($worker) = $node->workers;
    my $before = descriptors($worker);
    # Each takes two; those that get none are told so.
    my @clients = map { my $c = $node->client; $c->send("GET /slow?delay=3 HTTP/1.1\r\nHost: x\r\n\r\n"); $c } 1 .. 24;
    ok($node->wait_log(qr/worker_connections are not enough/), 'all connections are taken');
    sleep 0.2;
    my $count = $probed->count;
    my $used = used($worker);
    sleep 2;
    my $spent = used($worker) - $used;
    cmp_ok($spent, '<', 0.5 * time_scale(), "nobody tries without a pause ($spent s of 2)");
    cmp_ok($probed->count - $count, '<=', 5, 'there are no checks') or diag($probed->count - $count);
    my $lines = () = $node->grep_log(qr/worker_connections are not enough/);
    cmp_ok($lines, '<', 200, "nor a flood of lines ($lines)");
    $_->close for @clients;
    ok(wait_until(sub { $node->get('/here', timeout => 0.5)->{status} == 200 }), 'they are free again');
    for my $i (0 .. 4) {
        my $health = after_checks('main', $probed->address($i), health('main', $probed->address($i))->{checks} + 2, 'checks go on');
        is($health->{fails}, 0, 'and none was taken for failed');
    }
    my @put_off = $node->grep_log(qr/put off/);
    like($put_off[0] || '', qr/\[warn\] .*registry "main": .*health checks? (?:is|are) put off: worker_connections are not enough$/, 'the log says why there were none');
    cmp_ok(scalar @put_off, '<=', 10, 'one a second') or diag(join "\n", @put_off);
    is(scalar($node->grep_log(qr/\d unhealthy|unhealthy in/)), 0, 'nobody was unhealthy');
    $lines = () = $node->grep_log(qr/\[alert\] .*worker_connections are not enough/);
    $node->log_is_clean(allow => [ [ qr/\[alert\] .*worker_connections are not enough/, $lines ] ]);
};

done_testing;
