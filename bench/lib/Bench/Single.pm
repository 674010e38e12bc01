package Bench::Single;

# The rows that are no race between two systems. Each returns
#   value   what was found, in words
#   number  the figure that the bar applies to
#   notes   more to know, a line each
# or { missing => what is not there }.

use strict;
use warnings;

use Bench::Load qw(in_order start_wrk finish_wrk);
use Bench::System;
use JSON::PP ();
use RegistryTest::Backend ();
use RegistryTest::Process qw(temp_dir slurp spew free_port wait_until spawn alive exit_status);
use Time::HiRes qw(time sleep);

my ($HERE) = __FILE__ =~ m{^(.*)/lib/Bench/Single\.pm$};

# Zone memory

# Servers are added until the zone is full.
sub memory {
    my $mb   = 8;
    my $node = Bench::System->new(system => 'module', servers => 0, size => "${mb}m", backend => free_port());
    my @paths = map { '/upstream/add?host=' . Bench::System::server_host($_) . '&port=65535' } 0 .. 62_000;
    my $added = 0;
    in_order($node->address, 'POST', \@paths, sub {
        my ($response) = @_;
        return 0 if $response->{status} == 507;
        die "add: $response->{status} $response->{body}\n" if $response->{status} != 200;
        return ++$added;
    });
    $node->stop;
    my $bytes = $mb * 1024 * 1024 / $added;
    return {
        number => $bytes,
        value  => sprintf('%.0f bytes', $bytes),
        notes  => [ sprintf('a zone of %dm holds %d servers; stock needs %.0f bytes a server for 10,000', $mb, $added, _stock_bytes(10_000)) ],
    };
}

# The smallest zone, by nginx -t, that stock nginx fits so many servers into.
sub _stock_bytes {
    my ($servers) = @_;
    my ($low, $high) = (64, 32 * 1024);
    while ($high - $low > 16) {
        my $kb = int(($low + $high) / 2);
        if (Bench::System::stock_fits($servers, "${kb}k")) { $high = $kb }
        else                                               { $low = $kb }
    }
    return $high * 1024 / $servers;
}

# Fairness

# Backends hold each request for a random while; whenever all 64 connections have
# theirs on a server, the counts are compared. In between, when answers have gone out and
# the next requests have not come, no balancer can do anything about a difference.
sub fairness {
    my ($workers, $seconds) = @_;
    my $servers = 8;
    my $backend = RegistryTest::Backend->new(host => '0.0.0.0', backlog => 4096);
    my $node = Bench::System->new(
        system => 'module', servers => $servers, workers => $workers, backend => $backend->port);
    my $client = RegistryTest::Client->new($node->address);
    my $wrk = start_wrk($node->url('/'), undef, 'delay', 0.02, 0.2);

    my ($worst, $samples, $between) = (0, 0, 0);
    my $end = time + $seconds - 0.1;
    while (time < $end) {
        my @counts = sort { $a <=> $b }
            map { $_->{connections} } @{ $client->get('/upstream/status')->{json}{data} };
        my $total = 0;
        $total += $_ for @counts;
        if ($total == $Bench::Load::CONNECTIONS) {
            $samples++;
            $worst = $counts[-1] - $counts[0] if $counts[-1] - $counts[0] > $worst;
        }
        else { $between++ }
        sleep 0.003;
    }
    finish_wrk($wrk, $seconds);
    $client->close;
    my $left = 0;
    wait_until(sub {
        $left = 0;
        $left += $_->{connections} for @{ $client->get('/upstream/status')->{json}{data} };
        return !$left;
    }, 5);
    $node->stop;
    $backend->stop;
    die "status never showed all $Bench::Load::CONNECTIONS requests\n" unless $samples;
    my @notes = ("$samples samples with all $Bench::Load::CONNECTIONS requests on servers, $between others not counted");
    push @notes, "$left requests are still counted after the load has stopped" if $left;
    return { number => $left ? 'inf' : $worst, value => "at most $worst", notes => \@notes };
}

# Slices

# What is preloaded to time them; or undef and what is missing.
sub slices_library {
    my $so   = temp_dir() . '/slices.so';
    my $said = `cc -O2 -shared -fPIC -o '$so' '$HERE/slices.c' -ldl -pthread 2>&1`;
    return $? == 0 ? $so : (undef, "no C compiler (apt-get install gcc): $said");
}

sub read_slices {
    my ($file) = @_;
    my @numbers = unpack 'Q4', slurp($file);
    return { slice => $numbers[0] / 1e6, hold => $numbers[1] / 1e6, slices => $numbers[2], holds => $numbers[3] };
}

# Over the file, not through a new one: it is mapped.
sub zero_slices {
    my ($file) = @_;
    open my $out, '+<', $file or die "$file: $!\n";
    binmode $out;
    syswrite $out, "\0" x 32;
    close $out;
    return;
}

# The longest lock hold and the longest slice of the event loop, in CPU time, for the
# endpoints that mean all of 10,000 servers, and for 10,000 that expire at once.
sub slices {
    my ($servers) = @_;
    my $dir = temp_dir();
    my ($so, $why) = slices_library();
    return { missing => $why } if $why;

    my $start = sub {
        my ($name, %opt) = @_;
        my $file = spew("$dir/$name", "\0" x 32);
        my $node = Bench::System->new(
            system => 'module', servers => $servers, backend => free_port(), register => 0, log => 'notice',
            preload => $so, env => { SLICES => $file }, %opt);
        $node->register;
        zero_slices($file);
        return ($node, $file);
    };
    my %found;

    my ($node, $file) = $start->('status');
    my $client = RegistryTest::Client->new($node->address);
    for (1 .. 10) {
        my $reply = $client->get('/upstream/status');
        die "status: $reply->{status}\n" if $reply->{status} != 200 || $reply->{json}{total} != $servers;
    }
    $found{"status of $servers servers"} = read_slices($file);
    for (['GET', 'health', 'total_servers'], ['POST', 'reset', 'servers_reset'], ['POST', 'cleanup', 'expired_count']) {
        my ($method, $endpoint, $count) = @$_;
        zero_slices($file);
        for (1 .. 10) {
            my $reply = $client->request($method, "/upstream/$endpoint");
            my $n = $reply->{status} == 200 ? $reply->{json}{data}{$count} : 'no';
            die "$endpoint: $reply->{status}, $n servers\n" if $n ne ($endpoint eq 'cleanup' ? 0 : $servers);
        }
        $found{"$endpoint of $servers servers"} = read_slices($file);
    }
    $node->stop;

    # Each change is written, and a write copies all servers.
    my $state = "$dir/state/servers.json";
    ($node, $file) = $start->('file', registry => "state_file $state;");
    $client = RegistryTest::Client->new($node->address);
    my $inode = sub { return (stat $state)[1] || 0 };
    my $named = quotemeta Bench::System::server_host($servers - 1);
    wait_until(sub { -e $state && slurp($state) =~ /"$named/ }, 20);
    zero_slices($file);
    for my $n (1 .. 10) {
        my $before = $inode->();
        my $weight = 1 + $n;
        my $path = '/upstream/weight?host=' . Bench::System::server_host($n) . "&port=$node->{backend}&weight=$weight";
        my $reply = $client->request('POST', $path);
        die "weight: $reply->{status}\n" if $reply->{status} != 200;
        wait_until(sub { $inode->() != $before }, 10);
    }
    $found{"state file of $servers servers"} = read_slices($file);
    $node->stop;

    # All have registered well before the timer's first turn, and are silent too long by then.
    # Until then nobody asks: a request would drop some in passing.
    my ($ttl, $interval) = (3, 11);
    for (1 .. 3) {
        my ($done, @wait);
        for my $what ('disable', 'remove') {
            my $began = time;
            my ($node, $file) = $start->("$what$ttl", registry =>
                "heartbeat_ttl ${ttl}s; cleanup_interval ${interval}s; on_expire $what;");
            push @wait, [ $what, $node, $file, $began, time ];
        }
        $done = !grep { $_->[4] - $_->[3] > $interval - $ttl } @wait;
        for (@wait) {
            my ($what, $node, $file, $began) = @$_;
            if ($done) {
                my $left = $began + $interval + 2.5 - time;
                sleep $left if $left > 0;
                $found{"expiry of $servers, on_expire $what"} = read_slices($file);
                my $health = RegistryTest::Client->new($node->address)->get('/upstream/health')->{json}{data};
                my $off = $what eq 'remove' ? $servers - $health->{total_servers} : $servers - $health->{enabled_servers};
                die "the timer has treated $off of $servers servers\n" if $off != $servers;
            }
            $node->stop;
        }
        last if $done;

        # The machine is slow: give them longer to register.
        ($ttl, $interval) = (2 * $ttl, 3 * $interval);
    }

    my $worst = 0;
    my @notes;
    for my $what (sort keys %found) {
        my $one = $found{$what};
        push @notes, sprintf '%s: longest slice %.3f ms, longest lock hold %.3f ms (%d slices, %d holds)',
            $what, @$one{qw(slice hold slices holds)};
        for (@$one{qw(slice hold)}) { $worst = $_ if $_ > $worst }
    }
    return { number => $worst, value => sprintf('%.2f ms', $worst), notes => \@notes };
}

# One choice

# The microbenchmark bench/choice.rs, by cargo bench, once: nanoseconds by method, and by number of
# servers or what these are like.
my $choice;

sub _choice {
    my ($quick) = @_;
    return $choice if $choice;
    my $top    = "$HERE/..";
    my $log    = temp_dir() . '/cargo';
    my $target = $ENV{CARGO_TARGET_DIR} || "$top/target";
    my @command = ('cargo', 'bench', '--locked', '--no-default-features', '--manifest-path', "$top/Cargo.toml",
        '--target-dir', $target, '--bench', 'choice', '--', $quick ? '--quick' : ());
    # Figures of an earlier run are not mistaken for this one's.
    my $began = time - 1;
    # Not by system(), under which a signal would leave it running.
    my $pid = spawn(\@command, stdout => $log, stderr => $log);
    wait_until(sub { !alive($pid) }, 1800, 0.2) or die "cargo bench does not end\n";
    die "cargo bench failed:\n" . slurp($log) if exit_status($pid);

    my %ns;
    for my $file (glob "'$target/criterion/choice and release/*/*/new/estimates.json' '$target/criterion/of 10,000 servers/*/*/new/estimates.json'") {
        my ($method, $case) = $file =~ m{([^/]+)/([^/]+)/new/} or next;
        next if (stat $file)[9] < $began;
        $ns{$method}{$case} = JSON::PP->new->decode(slurp($file))->{median}{point_estimate};
    }
    for (3, 10_000) { die "cargo bench left no figure for $_ servers\n" unless $ns{least_conn}{$_} }
    return $choice = \%ns;
}

sub _no_cargo {
    return if grep { -x "$_/cargo" } split /:/, $ENV{PATH} || '';
    return { missing => 'cargo is not installed (https://rustup.rs)' };
}

sub choice {
    my ($quick) = @_;
    my $missing = _no_cargo();
    return $missing if $missing;
    my $ns = _choice($quick);
    my @notes;
    for my $method (sort keys %$ns) {
        my $of = $ns->{$method};
        my @counts = sort { $a <=> $b } grep { /^\d+$/ } keys %$of;
        my @cases  = sort grep { !/^\d+$/ } keys %$of;
        push @notes, "$method: " . join(', ', map { sprintf '%.0f ns with %s', $of->{$_}, $_ } @counts) . ' servers'
            . (@cases ? '; with 10000, ' . join(', ', map { sprintf '%s %.0f', $_, $of->{$_} } @cases) : '');
    }
    my $number = $ns->{least_conn}{10_000};
    return { number => $number, value => sprintf('%.0f ns', $number), notes => \@notes };
}

# How it grows: the bar is what log N gives, a scan of all servers would be far beyond.
sub choice_growth {
    my ($quick) = @_;
    my $missing = _no_cargo();
    return $missing if $missing;
    my $ns = _choice($quick)->{least_conn};
    my $growth = $ns->{10_000} / $ns->{3};
    return { number => $growth, value => sprintf('%.2f times', $growth) };
}

1;
