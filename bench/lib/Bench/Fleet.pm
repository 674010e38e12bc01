package Bench::Fleet;

# Rows about many servers and many nodes: what the snapshot of ten thousand does to a node that
# joins, and what Redis has to carry. Results are as in Bench::Single and Bench::Sync.

use strict;
use warnings;

use Bench::Cluster;
use Bench::Cpu qw(cpu_seconds others);
use Bench::Held;
use Bench::Load qw(start_wrk finish_wrk);
use Bench::Pace qw(start_paced finish_paced);
use Bench::Simulated;
use Bench::Single;
use Bench::Stats qw(median quantile quantile_bound);
use RegistryTest::Client ();
use RegistryTest::Process qw(free_port slurp temp_dir wait_until);
use Time::HiRes qw(time sleep);

my $INTERVAL = 1000;

# A node that joins

my $join;

# Redis has the servers and the requests of simulated nodes. A node of nginx with two workers
# proxies at a steady pace to servers of its own, and then finds its way to Redis: the path of its
# socket, which was not there. A twin of it, which does not find it, gets the same requests
# from the same client: what else runs on the machine delays both.
sub _join {
    my ($nodes, $servers, $rounds) = @_;
    my ($so, $why) = Bench::Single::slices_library();
    my $backend = Bench::System->backend(1000);
    my $cluster = Bench::Cluster->new(nodes => 0);
    # It, too, stands for another machine.
    setpriority 0, $cluster->redis->pid, 19;
    my $fleet = Bench::Simulated->new($cluster->redis->url, $nodes, $servers, $backend->{port}, $INTERVAL);
    my $fill  = $fleet->order('report');
    $fleet->order('busy', int($servers / $nodes), 0);
    # Their means are told, and read by all.
    sleep 5;
    my %found = (fill => $fill, seconds => $fleet->{seconds}, why => $why, nodes => $nodes, servers => $servers);

    for my $round (1 .. $rounds) {
        my $dir  = temp_dir();
        my @file = map { RegistryTest::Process::spew("$dir/slices$_", "\0" x 32) } 0, 1;
        my @way  = map { "$dir/redis$_.sock" } 0, 1;
        my @two  = map {
            $cluster->add_node(
                workers => 2, backend => $backend->{port}, url => "unix:$way[$_]", more => "redis_interval ${INTERVAL}ms;",
                $so ? (preload => $so, env => { SLICES => $file[$_] }) : ())
        } 0, 1;
        my @client = map { RegistryTest::Client->new($_->address) } @two;
        for my $client (@client) {
            for my $i (0 .. 7) {
                my $path = "/upstream/add?ns=backend&port=$backend->{port}&host=" . Bench::System::server_host($i);
                die "a server was refused\n" if $client->post($path)->{status} != 200;
            }
        }
        my $seconds = 5;
        my $pace = start_paced([ map { $_->address } @two ], [ [ GET => '/' ] ], 2000, $seconds, connections => 8);
        sleep 0.7;
        my @ours = ($cluster->pids, $fleet->pid, $pace->{pid}, $backend->{pid}, $backend->workers);
        others(@ours);
        Bench::Single::zero_slices($_) for @file;
        symlink $cluster->redis->socket, $way[0] or die "symlink: $!\n";
        my ($from, $to);
        wait_until(sub {
            my ($sync) = map { Bench::Cluster::sync_of($_) } @client;
            $from = time if !$from && $sync->{connected};
            $to = time if $sync->{last_sync};
            return $to;
        }, 60, 0.005) or die "the node has not read all\n";
        # What it found to be missing there is told now.
        my $end = $to + 0.2;
        sleep $end - time if $end > time;
        my @slices = $so ? map { Bench::Single::read_slices($_) } @file : ();
        my $taken  = others(@ours);
        my $load   = finish_paced($pace);
        my $health = $client[0]->get('/upstream/health?ns=fleet')->{json}{data} || {};
        die "the node knows $health->{total_servers} servers\n" if $health->{total_servers} != $servers;
        $_->close for @client;
        $_->stop for @two;
        splice @{ $cluster->{nodes} }, -2;

        my ($joins, $twin) = map {
            [ map { 1000 * $_->[1] } grep { $_->[0] + $_->[1] >= $from - 0.02 && $_->[0] < $end } @$_ ]
        } @{ $load->{of} };
        # It may have found Redis when the load had ended.
        next unless @$joins && @$twin && $end < $load->{of}[0][-1][0];
        push @{ $found{rounds} }, {
            took => $to - $from, disturbed => $taken > $Bench::Load::OTHERS ? 1 : 0, slices => \@slices, bad => $load->{bad},
            during => $joins, without => $twin, longest => quantile(1, @$joins), longest_without => quantile(1, @$twin),
        };
    }
    $fleet->stop;
    $cluster->stop;
    $backend->stop;
    die "the node never found Redis in time\n" unless $found{rounds};
    return \%found;
}

sub _missing { my ($why) = grep { $_ } Bench::Cluster::missing(), Bench::Simulated::missing(); return $why }

sub _joined { my ($rounds) = @_; return $join ||= _join(50, 10_000, $rounds) }

# Whether other programs ran during more than half of the rounds.
sub _disturbed {
    my @rounds = @{ $join->{rounds} };
    return 2 * (grep { $_->{disturbed} } @rounds) > @rounds;
}

# The longest that a request takes while the servers come, against the longest of the twin's meanwhile, in
# milliseconds.
sub join_longest {
    my ($rounds) = @_;
    if (my $why = _missing()) { return { missing => $why } }
    my @rounds = @{ _joined($rounds)->{rounds} };
    my $more   = median(map { $_->{longest} - $_->{longest_without} } @rounds);
    my $bad    = 0;
    $bad += $_->{bad} for @rounds;
    return {
        bound => quantile_bound(0.5, map { $_->{longest} - $_->{longest_without} } @rounds),
        disturbed => _disturbed(), number => $more, value => sprintf('%.2f ms', $more),
        notes => [ 'in each round, ms, with and without: ' . join(', ', map { sprintf '%.2f %.2f', @$_{qw(longest longest_without)} } @rounds),
            $bad ? "$bad requests failed" : () ],
    };
}

# The same for the 99.9th percentile, of all rounds together.
sub join_p999 {
    my ($rounds) = @_;
    if (my $why = _missing()) { return { missing => $why } }
    my @rounds = @{ _joined($rounds)->{rounds} };
    my ($during, $without) = map { my $what = $_; [ map { @{ $_->{$what} } } @rounds ] } qw(during without);
    my $more = quantile(0.999, @$during) - quantile(0.999, @$without);
    return {
        disturbed => _disturbed(), number => $more, value => sprintf('%.2f ms', $more),
        notes => [ map { my ($name, $list) = @$_; sprintf '%s: %d requests, ms: median %.2f, p99 %.2f, p99.9 %.2f', $name,
            scalar @$list, map { quantile($_, @$list) } 0.5, 0.99, 0.999 } [ with => $during ], [ without => $without ] ],
    };
}

# The longest slice of the event loop and hold of a lock meanwhile.
sub join_slices {
    my ($rounds) = @_;
    if (my $why = _missing()) { return { missing => $why } }
    my $found = _joined($rounds);
    return { missing => $found->{why} } if $found->{why};
    my %most = map { my $what = $_; $what => quantile(1, map { $_->{slices}[0]{$what} } @{ $found->{rounds} }) } qw(slice hold);
    my $twin = quantile(1, map { $_->{slices}[1]{slice} } @{ $found->{rounds} });
    my $most = quantile(1, values %most);
    return {
        disturbed => _disturbed() ? 'worse' : '', number => $most, value => sprintf('%.2f ms', $most),
        notes => [ sprintf('in CPU time: longest slice %.3f ms (of the twin %.3f ms), longest lock hold %.3f ms', $most{slice}, $twin, $most{hold}) ],
    };
}

sub join_time {
    my ($rounds) = @_;
    if (my $why = _missing()) { return { missing => $why } }
    my $found  = _joined($rounds);
    my $median = median(map { $_->{took} } @{ $found->{rounds} });
    return {
        number => $median, value => sprintf('%.2f s', $median),
        notes  => [ sprintf '%d nodes in one process, which all began empty, knew all %d servers after %.1f s', @$found{qw(nodes servers seconds)} ],
    };
}

# Of the simulated nodes, while all read everything.
sub join_steps {
    my ($rounds) = @_;
    if (my $why = _missing()) { return { missing => $why } }
    my $fill = _joined($rounds)->{fill};
    return {
        number => $fill->{longest}, value => sprintf('%.2f ms', $fill->{longest}),
        notes  => [ sprintf '%d steps in CPU time: median %.3f ms, p99.9 %.3f ms; by the clock, which other processes share, at most %.1f ms',
            @$fill{qw(steps p50 p999 longest_wall)} ],
    };
}

# What Redis carries

# A second.
our ($REQUESTS, $CHANGES) = (1000, 50);

my %traffic;

sub _redis_numbers {
    my ($redis) = @_;
    my %info = map { /^(\w+):(.*?)\r?$/ ? ($1 => $2) : () } split /\n/, $redis->cli('INFO', 'everything');
    my ($calls, $us) = (0, 0);
    for (grep { /^cmdstat_evalsha/ } keys %info) {
        my %of = $info{$_} =~ /(\w+)=([\d.]+)/g;
        $calls += $of{calls};
        $us    += $of{usec};
    }
    return (
        bytes => $info{total_net_input_bytes} + $info{total_net_output_bytes}, commands => $info{total_commands_processed},
        scripts => $calls, us => $us, memory => $info{used_memory},
    );
}

# What passes a second, and shares of a processor, while a load is on: the first node gets so many
# of these requests a second, or as many as 128 clients send (slow).
sub _phase {
    my ($cluster, $seconds, %load) = @_;
    my @nodes = map { [ $_->workers ] } $cluster->nodes;
    my $redis = $cluster->redis;
    my $first = $cluster->node(0);
    local $Bench::Load::CONNECTIONS = 128;
    my $wrk  = $load{slow} ? start_wrk($first->url('/'), undef, 'delay', 0.2, 0.2) : undef;
    my $pace = $load{paths} ? start_paced($first->address, $load{paths}, $load{rate}, $seconds + 2, connections => 10) : undef;
    # Until it is steady.
    sleep 1.5;
    my $now = sub {
        return (
            time => time, ($redis ? (_redis_numbers($redis), redis => (cpu_seconds($redis->pid))[0]) : ()),
            map { ("node$_" => (cpu_seconds(@{ $nodes[$_] }))[0]) } 0 .. $#nodes,
        );
    };
    my %before = $now->();
    sleep $seconds - 0.5;
    my %after = $now->();
    my $bad = $pace ? finish_paced($pace)->{bad} : $wrk ? finish_wrk($wrk, 0)->{errors} : 0;
    die "$bad requests failed\n" if $bad;
    my $passed = $after{time} - $before{time};
    return { memory => $after{memory}, map { $_ => ($after{$_} - $before{$_}) / $passed } grep { !/^(?:time|memory)$/ } keys %after };
}

# Two nodes at rest, under requests, changes and heartbeats, all of which go to the first one.
sub _traffic {
    my ($servers, $redis, $seconds) = @_;
    my $backend = Bench::Held->new(1);
    my $cluster = Bench::Cluster->new(
        nodes => $redis ? 2 : 1, redis => $redis, backend => $backend->port, keepalive => 64,
        more => $redis ? "redis_interval ${INTERVAL}ms;" : '');
    $cluster->register(0, $servers - 1);
    $cluster->settle($servers);
    sleep 3;
    my $who   = sub { 'ns=backend&port=' . $backend->port . '&host=' . Bench::System::server_host($_[0]) };
    my @beats = map { [ POST => '/upstream/refresh?' . $who->($_) ] } 0 .. $servers - 1;
    my @changes = map { my $weight = $_; map { [ POST => '/upstream/weight?' . $who->($_) . "&weight=$weight" ] } 0 .. 99 } 2, 1;
    my %phases = (
        rest     => {},
        requests => { paths => [ [ GET => '/' ] ], rate => $REQUESTS },
        slow     => { slow => 1 },
        changes  => { paths => \@changes, rate => $CHANGES },
        beats    => { paths => \@beats, rate => $servers / 10 },
    );
    my %found;
    for my $phase ($redis ? qw(rest requests slow changes beats) : qw(rest beats)) {
        $found{$phase} = _phase($cluster, $seconds, %{ $phases{$phase} });
        # So that nothing of it is left.
        sleep 2.5;
    }
    $cluster->stop;
    $backend->stop;
    return \%found;
}

sub _traffic_of {
    my ($servers, $redis, $seconds) = @_;
    return $traffic{"$servers $redis"} ||= _traffic($servers, $redis, $seconds);
}

sub _kb { return sprintf $_[0] < 10_000 ? '%.1f kB/s' : '%.0f kB/s', $_[0] / 1000 }

sub _percent { return sprintf '%.1f %%', 100 * $_[0] }

sub _note {
    my ($name, $phase) = @_;
    return sprintf '%s: %s, %.0f scripts/s, %.0f commands/s in all, redis-server %s of a processor, nodes %s and %s', $name,
        _kb($phase->{bytes}), @$phase{qw(scripts commands)}, map { _percent($phase->{$_}) } qw(redis node0 node1);
}

sub _against {
    my ($ours, $theirs, $kb, @notes) = @_;
    my $ratio = $ours / $theirs;
    return { number => $ratio, ratio => $ratio, value => $kb->($ours), against => $kb->($theirs), notes => \@notes };
}

# Bytes that pass between two nodes and Redis with ten thousand servers: in one phase against at rest.
sub traffic {
    my ($phase, $seconds) = @_;
    my $found = _traffic_of(10_000, 1, $seconds);
    return _against((map { $found->{$_}{bytes} } $phase, 'rest'), \&_kb, _note($phase, $found->{$phase}));
}

# At rest with ten thousand servers against a thousand.
sub traffic_at_rest {
    my ($seconds) = @_;
    my ($many, $few) = map { _traffic_of($_, 1, $seconds)->{rest} } 10_000, 1_000;
    return _against($many->{bytes}, $few->{bytes}, \&_kb, _note('10,000 servers', $many), _note('1,000 servers', $few));
}

# What a change costs more than there is at rest, in bytes: ten thousand servers against a thousand.
sub traffic_of_change {
    my ($seconds) = @_;
    my ($many, $few) = map { _traffic_of($_, 1, $seconds) } 10_000, 1_000;
    return _against((map { ($_->{changes}{bytes} - $_->{rest}{bytes}) / $CHANGES } $many, $few),
        sub { sprintf '%.0f bytes', $_[0] }, _note('10,000 servers', $many->{changes}), _note('1,000 servers', $few->{changes}));
}

# What ten thousand heartbeats every ten seconds cost, of a processor: redis-server, the node that
# gets them (node0) and one that only hears of them (node1).
sub beats {
    my ($who, $seconds) = @_;
    my $found = _traffic_of(10_000, 1, $seconds);
    my ($beats, $rest) = map { $found->{$_}{$who} } qw(beats rest);
    my @notes = sprintf 'at rest %s', _percent($rest);
    if ($who eq 'redis') {
        push @notes, sprintf '%.0f scripts/s of %.2f ms, %.0f commands/s in all, %s; %.1f MB of memory',
            @{ $found->{beats} }{qw(scripts)}, $found->{beats}{us} / 1000 / ($found->{beats}{scripts} || 1),
            $found->{beats}{commands}, _kb($found->{beats}{bytes}), $found->{beats}{memory} / 1e6;
    }
    my $without = $who eq 'node0' ? _traffic_of(10_000, 0, $seconds) : undef;
    push @notes, sprintf 'without Redis %s, at rest %s', map { _percent($without->{$_}{node0}) } qw(beats rest) if $without;
    return { number => 100 * $beats, value => _percent($beats), $without ? (against => _percent($without->{beats}{node0})) : (), notes => \@notes };
}

1;
