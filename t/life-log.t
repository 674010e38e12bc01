# What the log says of the life of servers: each change once, at notice, with the
# registry, the namespace and the server; heartbeats and requests nothing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $TTL = 0.4 * time_scale();
my $ttl = 1000 * $TTL . 'ms';
my $node = RegistryTest->nginx(
    workers => 2,
    http => "registry main 256k { heartbeat_ttl $ttl; cleanup_interval 50ms; }
        registry late 256k { heartbeat_ttl $ttl; cleanup_interval 1h; }
        registry removes 256k { heartbeat_ttl $ttl; cleanup_interval 50ms; on_expire remove; }
        upstream backend { registry main; }
        upstream lately { registry late; }
        upstream gone { registry removes; }",
    server => 'location /upstream/ { registry_api main; }
        location /late/ { registry_api late; }
        location /removes/ { registry_api removes; }
        location / { proxy_pass http://backend; }
        location = /lately { proxy_pass http://lately; }',
);
my $backend = RegistryTest->backend(name => 'a');
my $addr = $backend->address;
my %here = (host => $backend->host, port => $backend->port);

my $from = 0;
sub from_here { $from = $node->log_size }

# The lines since from_here about changes of servers, without time and process.
sub changes {
    return map { s/^\S+ \S+ \[\w+\] \d+#\d+: (?:\*\d+ )?//r =~ s/, client: .*//r } lines();
}
sub lines { return $node->grep_log(qr/registry "\w+": (?:server|cleanup:)/, $from) }

sub says {
    my ($expected, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my @levels = grep { !/\[notice\]/ && !/cleanup:/ } lines();
    is_deeply([ changes() ], [ map { qq{registry "main": server $addr $_ in namespace "backend"} } @$expected ], $name);
    is("@levels", '', 'at notice') if @$expected;
}

subtest 'each change by hand is one line' => sub {
    my @steps = (
        [ 'add', {}, ['added'] ],
        [ 'add', {}, [] ],
        [ 'refresh', {}, [] ],
        [ 'weight', { weight => 2 }, [] ],
        [ 'toggle', { action => 'enable' }, [] ],
        [ 'toggle', { action => 'disable' }, ['disabled'] ],
        [ 'toggle', { action => 'disable' }, [] ],
        [ 'refresh', {}, [] ],
        [ 'toggle', { action => 'enable' }, ['enabled'] ],
        [ 'drain', {}, ['draining'] ],
        [ 'drain', {}, [] ],
        [ 'toggle', { action => 'enable' }, ['enabled'] ],
        [ 'remove', {}, ['removed'] ],
        [ 'remove', {}, [] ],
    );
    for my $step (@steps) {
        my ($endpoint, $fields, $lines) = @$step;
        api($node, 'refresh', \%here) unless $endpoint eq 'add' || $endpoint eq 'remove';
        from_here();
        api($node, $endpoint, { %here, %$fields });
        my $what = join ' ', $endpoint, values %$fields;
        says($lines, "$what: " . ($lines->[0] || 'no line'));
    }
};

subtest 'requests and heartbeats say nothing' => sub {
    api($node, 'add', \%here);
    from_here();
    $node->get('/') for 1 .. 3;
    api($node, 'refresh', \%here);
    status($node);
    says([], 'no line');
};

subtest 'silence and the return from it are one line each' => sub {
    from_here();
    ok($node->wait_log(qr/cleanup:/, 10, $from), 'the cleanup has found it');
    sleep 0.3 * time_scale();    # several cleanups more
    $node->get('/') for 1 .. 2;
    my @lines = lines();
    is(scalar(grep { /server \Q$addr\E expired in namespace "backend", silent for \d+\.\d+ s$/ } @lines), 1,
        'expired, with the length of the silence');
    my ($line) = grep { /expired/ } @lines;
    like($line, qr/\[notice\]/, 'at notice');
    ok($line =~ /silent for ([\d.]+) s/ && $1 >= $TTL, 'which is longer than the TTL');
    my @cleanups = grep { /cleanup:/ } @lines;
    is(scalar(@cleanups), 1, 'and the cleanup says once');
    like($cleanups[0], qr/\[info\] .*registry "main": cleanup: 1 disabled, 0 removed/, 'how many it disabled, at info');
    is(scalar(@lines), 2, 'no other line') or diag(join "\n", @lines);

    from_here();
    api($node, 'refresh', \%here) for 1 .. 3;
    @lines = lines();
    is(scalar(@lines), 1, 'three heartbeats');
    like($lines[0], qr/\[notice\] .*registry "main": server \Q$addr\E back in namespace "backend"/, 'bring it back once');
};

subtest 'expired in passing: a request that finds it says so, once' => sub {
    $node->post('/late/add', body => form({%here}));
    sleep 1.5 * $TTL;
    from_here();
    is($node->get('/lately')->{status}, 502, 'the request finds nobody') for 1 .. 3;
    is(scalar(grep { /registry "late": server \Q$addr\E expired in namespace "lately"/ } lines()), 1, 'one line');
    $node->post('/late/cleanup');
    is(scalar(grep { /expired/ } lines()), 1, 'and the cleanup after it adds none');
    from_here();
    $node->post('/late/add', body => form({%here})) for 1, 2;
    is_deeply([ map { /\Q$addr\E (\w+)/ } lines() ], ['back'], 'an add of the known server is its return');
};

subtest 'a server removed for silence: expired, removed, and the count' => sub {
    from_here();
    $node->post('/removes/add', body => form({ %here, port => $_ })) for 1 .. 3;
    ok(wait_until(sub { !@{ $node->get('/removes/status')->{json}{data} } }), 'three servers fall silent and go');
    sleep 0.2 * time_scale();
    for my $port (1 .. 3) {
        is_deeply([ map { /registry "removes": server 127\.0\.0\.1:$port (\w+) in namespace "gone"/ } lines() ],
            [qw(added expired removed)], "the whole life of server $port");
    }
    my $removed = 0;
    $removed += $_ for map { /\[info\] .*registry "removes": cleanup: 0 disabled, (\d+) removed/ } lines();
    is($removed, 3, 'the counts that the cleanups tell add up');
    is(scalar(grep { /cleanup: 0 disabled, 0 removed/ } lines()), 0, 'those that did nothing say nothing');
};

subtest 'two workers and many requests still say each thing once' => sub {
    $node->post('/late/add', body => form({ %here, port => $_ })) for 1 .. 20;
    sleep 1.5 * $TTL;
    from_here();
    parallel(8, 80, $node->url('/lately'), procs => 2);
    my %expired;
    $expired{$_}++ for map { /server (\S+) expired/ } lines();
    is(scalar(keys %expired), 21, 'all have expired');
    is(scalar(grep { $_ > 1 } values %expired), 0, 'none twice');
};

$node->log_is_clean;
done_testing;
