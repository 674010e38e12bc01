package Bench::Method;

# What one choice costs a worker with each method, in nginx with the module and in stock nginx with its
# own method of that kind: choices.c calls what nginx calls for a request, and nothing else of it.
# Results are as in Bench::Sync.

use strict;
use warnings;

use Bench::Cpu qw(others);
use Bench::Load;
use Bench::Stats qw(median);
use Bench::System;
use Exporter 'import';
use RegistryTest::Client ();
use RegistryTest::Process qw(alive exit_status slurp spawn temp_dir wait_until);

our @EXPORT_OK = qw(methods);

my ($HERE) = __FILE__ =~ m{^(.*)/lib/Bench/Method\.pm$};

# The methods by the words of registry_balance, and stock nginx's words for the same. Its round robin is
# what it does without any; its "random two" means this one.
my @METHODS = (
    [ 'least_conn'            => 'least_conn' ],
    [ 'round_robin'           => '' ],
    [ 'random'                => 'random' ],
    [ 'random two least_conn' => 'random two least_conn' ],
    [ 'hash $args'            => 'hash $args' ],
    [ 'hash $args consistent' => 'hash $args consistent' ],
    [ 'ip_hash'               => 'ip_hash' ],
);
my %STOCK = map { @$_ } @METHODS;

sub methods { return map { $_->[0] } @METHODS }

# How long choices are made at a time, in milliseconds, and before the first one that counts.
my ($AT_A_TIME, $BEFORE) = (100, 50);

# The nginx module that makes the choices, and what is missing for it.
my ($module, $missing);

sub _module {
    return ($module, $missing) if $module || $missing;
    my $dir = temp_dir();
    my ($log, $so) = ("$dir/log", "$dir/choices.so");
    # Not by backticks, under which a signal would leave it running.
    my $run = sub {
        my ($out, @command) = @_;
        my $pid = spawn(\@command, stdout => $out, stderr => $log);
        wait_until(sub { !alive($pid) }, 600, 0.05);
        return defined exit_status($pid) && exit_status($pid) == 0;
    };
    my $wrong = sub {
        my ($why) = slurp($log) =~ /^(.*error:.*)/m;
        return (undef, $missing = "$_[0]: " . (defined $why ? $why : 'it does not say why'));
    };
    $run->("$dir/env", "$HERE/../scripts/build", '--nginx', $Bench::System::NGINX, '--env')
        or return $wrong->('no headers of this nginx');
    my ($source, $build) = slurp("$dir/env") =~ /NGINX_SOURCE_DIR=(\S+) NGINX_BUILD_DIR=(\S+)/;
    my ($includes) = slurp("$build/Makefile") =~ /^ALL_INCS = ((?:.*\\\n)*.*)/m;
    my @includes = map { m{^/} ? $_ : "$source/$_" } grep { !/^(?:-I|\\)$/ } split ' ', $includes;
    $run->("$dir/out", 'cc', '-O2', '-shared', '-fPIC', (map { ('-I', $_) } @includes), '-o', $so, "$HERE/choices.c")
        or return $wrong->('no C compiler (apt-get install gcc)');
    return ($module = $so, undef);
}

# Milliseconds of choices in one system: the nanoseconds that each took.
sub _choose {
    my ($client, $milliseconds) = @_;
    my $response = $client->get("/choices?$milliseconds", timeout => 60);
    my ($choices, $ns, $failed) = ($response->{body} || '') =~ /^choices=(\d+) ns=(\d+) failed=(\d+)$/m
        or die "no choices: $response->{status} " . ($response->{error} || $response->{body}) . "\n";
    return { value => $ns / $choices, errors => $failed };
}

# SYSTEM with that method and so many servers, ready to choose. Nothing listens where its servers are:
# nobody connects.
sub _start {
    my ($system, $method, $servers, $so) = @_;
    my $node = Bench::System->new(
        system => $system, servers => $servers, method => $system eq 'module' ? $method : $STOCK{$method},
        keepalive => 0, backend => 80, choices => $so);
    $node->pin_workers;
    my $client = RegistryTest::Client->new($node->address);
    _choose($client, $BEFORE);
    return { node => $node, client => $client };
}

# The two are on the same processor, and one rests while the other chooses: A B B A, a few times, and
# then both are started anew.
#   against  what is compared: module and stock, or stock and control
sub choices {
    my ($method, $servers, $starts, $rounds, @against) = @_;
    @against = qw(module stock) unless @against;
    my ($so, $why) = _module();
    return { missing => $why } if $why;
    my (%found, $round, @complaints);
    for my $start (1 .. $starts) {
        my @two  = map { _start($_, $method, $servers, $so) } @against;
        my @ours = map { ($_->{node}{pid}, $_->{node}->workers) } @two;
        for (1 .. $rounds) {
            my @order = ++$round % 2 ? (0, 1, 1, 0) : (1, 0, 0, 1);
            others(@ours);
            my @results = map { [ $_, { %{ _choose($two[$_]{client}, $AT_A_TIME) }, round => $round, series => $start } ] } @order;
            my $disturbed = others(@ours) > $Bench::Load::OTHERS ? 1 : 0;
            push @{ $found{ $_->[0] } }, { %{ $_->[1] }, disturbed => $disturbed } for @results;
        }
        for (@two) {
            $_->{client}->close;
            push @complaints, $_->{node}->complaints;
            $_->{node}->stop;
        }
    }
    return {
        ours => $found{0}, theirs => $found{1},
        notes => [ @complaints ? sprintf('%d lines in the logs, the first: %s', scalar @complaints, $complaints[0]) : () ],
    };
}

1;
