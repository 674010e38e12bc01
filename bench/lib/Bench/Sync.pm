package Bench::Sync;

# Rows about several nodes and Redis: how soon a change is seen, what a Redis that hangs does to
# requests, and how evenly nodes load the servers that they share. As in Bench::Single each returns
# value, number and notes, and
#   bound         what number stays under, with 95 % confidence
#   disturbed     other programs ran; "worse": which cannot have made it better
# or, when it compares, two lists of results to pair up:
#   ours, theirs  { value, round, series, disturbed } each

use strict;
use warnings;

use Bench::Cluster;
use Bench::Cpu qw(rest_of others);
use Bench::Held;
use Bench::Load qw(start_wrk finish_wrk);
use Bench::Pace qw(start_paced finish_paced request_bytes);
use Bench::Stats qw(median quantile quantile_bound);
use RegistryTest::Client ();
use RegistryTest::Process qw(fork_child stop_process wait_until);
use Time::HiRes qw(time sleep);

# redis_interval and redis_timeout of all nodes, in milliseconds: the defaults.
our ($INTERVAL, $TIMEOUT) = (1000, 1000);

# Requests a second, proxied and to the API, to each of the nodes of which one's Redis hangs.
our ($PROXIED, $API) = (800, 100);

sub _of { my ($node, $i) = @_; return Bench::System::server_host($i) . ":$node->{backend}" }

# Changes

my %KINDS = (
    add    => 'POST /upstream/add?',        remove => 'POST /upstream/remove?',
    weight => 'POST /upstream/weight?',     toggle => 'POST /upstream/toggle?',
    beat   => 'POST /upstream/refresh?',
);

# What status says of one server.
sub _entry { my ($body, $addr) = @_; return $body =~ /(\{"addr":"\Q$addr\E",.*?\})/s ? $1 : '' }

sub _field { my ($entry, $name) = @_; return $entry =~ /"$name":([^,}]*)/ ? $1 : '' }

# Changes of all kinds in turn on one node, one at a time: milliseconds from just before each is
# asked for until the other's status shows it, by kind, and whether other programs ran.
sub _spread {
    my ($changes, $lost) = @_;
    my $cluster = Bench::Cluster->new(
        nodes => 2, workers => 2, backend => RegistryTest::Process::free_port(),
        more => "redis_interval ${INTERVAL}ms; redis_timeout ${TIMEOUT}ms;");
    my ($here, $there) = $cluster->nodes;
    my $stay = 20;
    $cluster->register(0, $stay - 1);
    $cluster->settle($stay);

    # Hung up as soon as they have subscribed, nodes hear hardly anything.
    my $killer;
    if ($lost) {
        $killer = fork_child(sub {
            my $client = $cluster->redis->client;
            while (1) { $client->call(CLIENT => KILL => TYPE => 'pubsub'); sleep 0.002 }
        });
        sleep 1;
    }

    # A sign of life less than a tenth of a second after another one is not worth telling.
    sleep 0.2;
    srand 1;
    # Either worker may be asked.
    my @ask    = map { Bench::Pace->new($here->address) } 1 .. 4;
    my $watch  = Bench::Pace->new($there->address);
    my $status = request_bytes('GET', '/upstream/status?ns=backend');
    my $look   = sub { my ($code, $body) = $watch->ask($status); return $body };
    my @ours = ($cluster->pids, $killer || ());
    others(@ours);
    my (%took, @added, $next, $beat);
    my @kinds = sort keys %KINDS;
    for my $n (1 .. $changes) {
        my $kind = $kinds[ $n % @kinds ];
        $kind = 'add' if $kind eq 'remove' && !@added;
        my $server = $kind eq 'add' ? $stay + $next++ : $kind eq 'remove' ? shift @added
            : $kind eq 'beat' ? $beat++ % $stay : int rand $stay;
        push @added, $server if $kind eq 'add';
        my $addr  = _of($here, $server);
        my $entry = _entry($look->(), $addr);
        my ($method, $path) = split / /, $KINDS{$kind};
        $path .= 'ns=backend&host=' . Bench::System::server_host($server) . "&port=$here->{backend}";
        my $seen;
        if ($kind eq 'weight') {
            my $weight = _field($entry, 'weight') % 9 + 1;
            $path .= "&weight=$weight";
            $seen = sub { _field($_[0], 'weight') eq $weight };
        }
        elsif ($kind eq 'toggle') {
            my $on = _field($entry, 'enabled') eq 'true' ? 0 : 1;
            $path .= '&action=' . ($on ? 'enable' : 'disable');
            $seen = sub { _field($_[0], 'enabled') eq ($on ? 'true' : 'false') };
        }
        elsif ($kind eq 'beat') {
            # Its age is told to the millisecond.
            my $before = _field($entry, 'last_heartbeat');
            $seen = sub { _field($_[0], 'last_heartbeat') > $before + 0.002 };
        }
        else { $seen = sub { ($_[0] ne '') == ($kind eq 'add') } }

        sleep rand 0.03;
        my $began = time;
        my ($code) = $ask[ $n % @ask ]->ask(request_bytes($method, $path));
        die "$path: $code\n" if $code ne '200';
        while (1) {
            last if $seen->(_entry($look->(), $addr));
            die "$path was not seen on the other node\n" if time - $began > 20;
            sleep 0.0005;
        }
        push @{ $took{$kind} }, 1000 * (time - $began);
    }
    my $disturbed = others(@ours) > $Bench::Load::OTHERS;
    stop_process($killer, KILL => 1) if $killer;
    $cluster->stop;
    return { took => \%took, disturbed => $disturbed ? 'worse' : '' };
}

my %spread;

sub _spread_notes {
    my ($took) = @_;
    return join ', ', map {
        sprintf '%s %.0f (p99 %.0f)', $_ eq 'beat' ? 'heartbeat' : $_, median(@{ $took->{$_} }), quantile(0.99, @{ $took->{$_} })
    } sort keys %$took;
}

# The median; the p99 is a row of its own.
sub changes {
    my ($changes, $q) = @_;
    my $found = $spread{$changes} ||= _spread($changes);
    my $took  = $found->{took};
    my @all  = map { @$_ } values %$took;
    my $ms   = quantile($q, @all);
    my $n    = @all;
    return {
        disturbed => $found->{disturbed}, number => $ms, value => sprintf('%.1f ms', $ms), bound => quantile_bound($q, @all),
        $q == 0.5 ? (notes => [ "$n changes; medians in ms: " . _spread_notes($took) ]) : (),
    };
}

sub lost_changes {
    my ($changes) = @_;
    my $found = _spread($changes, 1);
    my $took  = $found->{took};
    my @all  = sort { $a <=> $b } map { @$_ } values %$took;
    return {
        disturbed => $found->{disturbed}, number => $all[-1], value => sprintf('%.0f ms', $all[-1]),
        notes => [ sprintf '%d changes, median %.0f ms, p99 %.0f; medians in ms: %s', scalar @all, median(@all),
            quantile(0.99, @all), _spread_notes($took) ],
    };
}

# Redis that hangs

my %hung;

# Two nodes, each with a Redis of its own, of which one hangs, in turn. The same clients send the same
# requests to both at a time, so that what else runs on the machine slows both. Latencies in
# milliseconds: { calm => [...], hung => [...] }.
sub _hang {
    my ($rounds, $seconds) = @_;
    my $backend  = Bench::System->backend(1000);
    my $servers  = 100;
    my $rest     = rest_of(1);
    my @clusters = map {
        Bench::Cluster->new(
            nodes => 1, backend => $backend->{port}, more => "redis_interval ${INTERVAL}ms; redis_timeout ${TIMEOUT}ms;")
    } 1, 2;
    for my $cluster (@clusters) {
        $cluster->register(0, $servers - 1);
        $cluster->settle($servers);
        $cluster->node(0)->pin_workers;
        Bench::Cpu::pin($rest, $cluster->redis->pid);
    }
    $backend->move($rest);

    my @requests;
    for my $i (0 .. 49) {
        my $who = 'ns=backend&host=' . Bench::System::server_host($i) . "&port=$backend->{port}";
        push @requests, [ POST => "/upstream/refresh?$who" ], [ POST => "/upstream/weight?$who&weight=" . (1 + $i % 3) ],
            [ GET => '/upstream/health?ns=backend' ];
    }
    my @addresses = map { $_->node(0)->address } @clusters;
    my @clients   = map { RegistryTest::Client->new($_) } @addresses;
    my %found;
    # The first time only warms up.
    for my $round (0 .. $rounds) {
        my $hung = $round % 2;
        my %pace = (
            proxied => start_paced(\@addresses, [ [ GET => '/' ] ], $PROXIED, $seconds + 0.5, processors => $rest),
            api     => start_paced(\@addresses, \@requests, $API, $seconds + 0.5, processors => $rest),
        );
        my @ours = (map({ $_->pids } @clusters), $backend->{pid}, $backend->workers, map { $_->{pid} } values %pace);
        $clusters[$hung]->redis->pause;
        others(@ours);
        sleep $seconds;
        my $taken = others(@ours);
        my $sync  = Bench::Cluster::sync_of($clients[$hung]);
        $clusters[$hung]->redis->resume;
        die "the node did not notice that Redis hung\n" if $sync->{connected};
        my %load = map { $_ => finish_paced($pace{$_}) } keys %pace;
        for my $client (@clients) {
            wait_until(sub { my $now = Bench::Cluster::sync_of($client); return $now->{connected} && !$now->{pending} }, 30)
                or die "a node does not use Redis again\n";
        }
        next if !$round;
        for my $i (0, 1) {
            # What else ran slowed both: pairs are good all the same.
            my %result = (
                round => $round, series => $hung, disturbed => 0, noisy => $taken > $Bench::Load::OTHERS ? 1 : 0, errors => 0);
            for my $kind (keys %load) {
                my @took = map { 1000 * $_->[1] } @{ $load{$kind}{of}[$i] };
                $result{$kind} = quantile(0.99, @took);
                $result{"${kind}_longest"} = quantile(1, @took);
                $result{errors} += $load{$kind}{bad};
            }
            push @{ $found{ $i == $hung ? 'hung' : 'calm' } }, \%result;
        }
    }
    $_->stop for @clusters;
    $backend->stop;
    return \%found;
}

# The p99 of one kind of requests, hung against calm.
sub hung {
    my ($kind, $rounds, $seconds) = @_;
    my $found = $hung{$rounds} ||= _hang($rounds, $seconds);
    my ($hung, $calm) = map { [ map { { %$_, value => $_->{$kind} } } @{ $found->{$_} } ] } qw(hung calm);
    return { ours => $hung, theirs => $calm, notes => ["$rounds times $seconds s"] };
}

# The longest of all requests while Redis hung.
sub hung_longest {
    my ($rounds, $seconds) = @_;
    my $found = $hung{$rounds} ||= _hang($rounds, $seconds);
    my %most;
    for my $state (qw(hung calm)) {
        for my $kind (qw(proxied api)) {
            $most{"$state $kind"} = quantile(1, map { $_->{"${kind}_longest"} } @{ $found->{$state} });
        }
    }
    my $most  = quantile(1, @most{ 'hung proxied', 'hung api' });
    my $noisy = 2 * (grep { $_->{noisy} } @{ $found->{hung} }) > $rounds;
    return {
        disturbed => $noisy ? 'worse' : '', number => $most, value => sprintf('%.1f ms', $most),
        against => sprintf('%.1f ms', quantile(1, @most{ 'calm proxied', 'calm api' })),
        notes => [ sprintf 'redis_timeout %d ms; longest in ms, while it hung and without: proxied %.1f and %.1f, API %.1f and %.1f',
            $TIMEOUT, @most{ 'hung proxied', 'calm proxied', 'hung api', 'calm api' } ],
    };
}

# Fairness over nodes

# One run: requests that take long are held by one node on half of the servers, short ones go
# through all others. How many requests the busiest server has more than the idlest, by samples
# taken on the servers' side; the mean of each second is a result.
sub _balance {
    my ($nodes, $redis, $long, $seconds) = @_;
    my $servers = 8;
    my $held    = Bench::Held->new($servers);
    my $cluster = Bench::Cluster->new(
        nodes => $nodes, redis => $redis, backend => $held->port, more => $redis ? "redis_interval ${INTERVAL}ms;" : '');
    $cluster->register(0, $servers / 2 - 1);
    $cluster->settle($servers / 2);
    my @long;
    if ($long) {
        @long = map { Bench::Pace->new($cluster->node(0)->address) } 1 .. 4 * $servers;
        syswrite $_->{socket}, request_bytes('GET', '/?delay=55') for @long;
        wait_until(sub { $held->stats->{active} == @long }, 10) or die "the servers do not have the long requests\n";
    }
    $cluster->register($servers / 2, $servers - 1);
    $cluster->settle($servers);
    my @short = $long && $nodes > 1 ? ($cluster->nodes)[ 1 .. $nodes - 1 ] : $cluster->nodes;
    local $Bench::Load::CONNECTIONS = 64 / @short > 32 ? 64 : int(96 / @short);
    my @wrk = map { start_wrk($_->url('/'), undef, 'delay', 0.02, 0.2) } @short;
    # Until they know of each other: the more they are, the smaller are the steps in which each
    # makes up for what the others have.
    sleep(($redis ? 4 + 2 * $nodes : 2) * $INTERVAL / 1000);
    my $from = time;
    sleep $seconds;
    my (@result, %mean);
    for my $second (0 .. $seconds - 1) {
        my @samples = $held->samples($from + $second, $from + $second + 1);
        my ($sum, @sums) = (0, (0) x $servers);
        for my $sample (@samples) {
            my (undef, @counts) = @$sample;
            $sums[$_] += $counts[$_] / @samples for 0 .. $#counts;
            @counts = sort { $a <=> $b } @counts;
            $sum += $counts[-1] - $counts[0];
        }
        @sums = sort { $a <=> $b } @sums;
        push @result, { value => $sum / @samples, means => $sums[-1] - $sums[0] } if @samples;
    }
    my $errors = 0;
    $errors += finish_wrk($_, 0)->{errors} for @wrk;
    $_->{errors} = $errors for @result;
    close $_->{socket} for @long;
    $cluster->stop;
    $held->stop;
    return @result;
}

# With Redis against without.
sub balance {
    my ($nodes, $long, $rounds, $seconds) = @_;
    my %found;
    for my $round (1 .. $rounds) {
        for my $redis ($round % 2 ? (1, 0) : (0, 1)) {
            push @{ $found{$redis} }, map { { %$_, round => $round, series => $round, disturbed => 0 } }
                _balance($nodes, $redis, $long, $seconds);
        }
    }
    return {
        ours => $found{1}, theirs => $found{0},
        notes => [ sprintf 'between the means of a second: %.2f and %.2f', map { median(map { $_->{means} } @{ $found{$_} }) } 1, 0 ],
    };
}

1;
