package Bench::Load;

# Load, and what it cost: wrk from outside, CPU time from /proc.

use strict;
use warnings;

use Exporter 'import';
use POSIX ();
use RegistryTest::Client ();
use RegistryTest::Process qw(spawn fork_child slurp spew temp_dir wait_until alive exit_status stop_process);
use Time::HiRes qw(time sleep);

our @EXPORT_OK = qw(cpu_seconds start_wrk finish_wrk load in_order side_load side_result);

# Client connections of the load.
our $CONNECTIONS = 64;

my $TICK = 1 / POSIX::sysconf(POSIX::_SC_CLK_TCK());
my ($SCRIPT) = __FILE__ =~ m{^(.*)/lib/Bench/Load\.pm$};
$SCRIPT .= '/wrk.lua';

my ($dir, $files);

sub scratch { $dir ||= temp_dir(); return "$dir/" . ++$files }

# User and system time of all these processes so far, in seconds: utime and stime, the
# 14th and 15th field of /proc/PID/stat. Counted from behind the name, which may hold
# anything.
sub cpu_seconds {
    my ($user, $system) = (0, 0);
    for my $pid (@_) {
        my ($rest) = slurp("/proc/$pid/stat") =~ /.*\) (.*)/s or die "process $pid has gone\n";
        my @fields = split ' ', $rest;
        $user   += $fields[11] * $TICK;
        $system += $fields[12] * $TICK;
    }
    return ($user, $system);
}

# A wrk in the background; its answer is what finish_wrk returns.
sub start_wrk {
    my ($url, $seconds, @arguments) = @_;
    my $out = scratch();
    my @command = ('wrk', '-t1', "-c$CONNECTIONS", "-d${seconds}s", '-s', $SCRIPT, $url);
    push @command, '--', @arguments if @arguments;
    return { pid => spawn(\@command, stdout => $out, stderr => $out), out => $out, seconds => $seconds };
}

# { requests, us, rps, errors, ... } once it is through.
sub finish_wrk {
    my ($wrk) = @_;
    sleep 0.9 * $wrk->{seconds};
    wait_until(sub { !alive($wrk->{pid}) }, $wrk->{seconds} + 20)
        or stop_process($wrk->{pid}, KILL => 1);
    my $text = slurp($wrk->{out});
    my ($line) = $text =~ /^result (.*)/m or die "wrk failed: $text\n";
    my %result = $line =~ /(\w+)=(-?\d+)/g;
    $result{errors} = $result{status} + $result{connect} + $result{read} + $result{write} + $result{timeout};
    $result{rps} = $result{requests} / ($result{us} / 1e6);
    unlink $wrk->{out};
    return \%result;
}

# Full load on a URL for so many seconds, and the CPU time in microseconds that the
# processes spent on each request.
sub load {
    my ($url, $seconds, @pids) = @_;
    my ($user, $system) = cpu_seconds(@pids);
    my $result = finish_wrk(start_wrk($url, $seconds));
    my ($user_after, $system_after) = cpu_seconds(@pids);
    my $requests = $result->{requests} or die "no request to $url was answered\n";
    $result->{user}   = ($user_after - $user) / $requests * 1e6;
    $result->{system} = ($system_after - $system) / $requests * 1e6;
    $result->{cpu}    = $result->{user} + $result->{system};
    return $result;
}

# Many small requests in order on one connection, some on their way at a time. Calls
# back with each response and its number; a false answer ends it. Returns how many
# requests were sent.
sub in_order {
    my ($address, $method, $paths, $seen) = @_;
    my $client = RegistryTest::Client->new($address);
    my ($sent, $got) = (0, 0);
    while ($got < @$paths) {
        my $batch = '';
        while ($sent < @$paths && $sent - $got < 64) {
            my @length = $method eq 'POST' ? (headers => { 'Content-Length' => 0 }) : ();
            $batch .= RegistryTest::Client::format_request($method, $paths->[ $sent++ ], @length);
        }
        $client->send($batch);
        while ($got < $sent) {
            my $response = $client->response;
            if (!$seen->($response, $got++)) {
                $client->close;
                return $got;
            }
        }
    }
    $client->close;
    return $got;
}

# So many POST requests a second beside another load, taking the paths in turn, over
# ten connections. side_result tells how many were sent a second and how many of them
# were not answered 200.
sub side_load {
    my ($address, $paths, $rate, $seconds) = @_;
    my $out   = scratch();
    my $lanes = 10;
    my $pid   = fork_child(sub {
        my @clients = map { RegistryTest::Client->new($address) } 1 .. $lanes;
        $_->open for @clients;
        my ($sent, $bad) = (0, 0);
        my $start = time;
        while ((my $left = $start + $seconds - time) > 0) {
            my $due = $start + $sent / $rate;
            if ((my $early = $due - time) > 0) { sleep($early < $left ? $early : $left); next }
            # What is sent here is no larger than a socket's buffer: it never blocks.
            $_->send(RegistryTest::Client::format_request('POST', $paths->[ $sent++ % @$paths ],
                headers => { 'Content-Length' => 0 })) for @clients;
            for (@clients) { $bad++ if $_->response->{status} != 200 }
        }
        spew($out, $sent / (time - $start) . " $bad");
    });
    return { pid => $pid, out => $out, seconds => $seconds };
}

sub side_result {
    my ($side) = @_;
    wait_until(sub { !alive($side->{pid}) }, $side->{seconds} + 10);
    my ($rate, $bad) = split ' ', slurp($side->{out});
    die "the requests beside the load failed\n" unless defined $bad;
    return ($rate, $bad);
}

1;
